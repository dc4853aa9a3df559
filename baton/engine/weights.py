"""A checkpoint's safetensors files, mapped: which tensors there are, and each one when it is asked for.

A tensor that `read` returns is a view of a private mapping of just its bytes, and dropping the tensor
releases the mapping, so a loader that packs one tensor at a time never holds the checkpoint.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from baton.engine.models.json_fields import read_json
from baton.errors import ConfigError

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_HEADER_LIMIT = 100_000_000  # bytes; the format's own
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16  # of each file, for the identity


class WeightSource(Protocol):
    """Where weights come from. `identity` is equal for equal weights, wherever they lie."""

    identity: str
    total_bytes: int

    def read(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


class Checkpoint:
    """The tensors of the folder's safetensors files, exactly those of `expected` (name -> shape).

    `optional`: tensors that may lie there and are not wanted.
    """

    def __init__(
        self, folder: Path, expected: Mapping[str, tuple[int, ...]], optional: frozenset[str]
    ) -> None:
        entries: dict[str, _Entry] = {}
        files = _files(folder)
        for path in files:
            entries.update(_read_header(path))
        _check(folder, entries, expected, optional)
        self._entries = {name: entries[name] for name in expected}
        self.total_bytes = sum(entry.size_bytes for entry in self._entries.values())
        self.identity = _identity(folder, files)

    def read(self, name: str) -> Tensor:
        entry = self._entries[name]
        start = entry.offset - entry.offset % mmap.ALLOCATIONGRANULARITY
        with entry.path.open("rb") as file:
            # Copy on write: torch wants writable memory, and nothing writes to it.
            mapping = mmap.mmap(
                file.fileno(),
                entry.offset - start + entry.size_bytes,
                access=mmap.ACCESS_COPY,
                offset=start,
            )
        flat = torch.frombuffer(
            mapping, dtype=entry.dtype, count=math.prod(entry.shape), offset=entry.offset - start
        )
        return flat.view(entry.shape)


def _files(folder: Path) -> list[Path]:
    """As transformers looks for them: one whole file goes before shards, of which an index may be left."""
    index = folder / _INDEX
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    if not index.exists():
        raise ConfigError(f"{folder} holds neither {_SINGLE} nor {_INDEX}", field="model")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"must map tensors to files (in {index})", field="weight_map")
    files = [folder / name for name in sorted(set(names.values()))]
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path} is missing, which {index} names", field="weight_map")
    return files


def _read_header(path: Path) -> dict[str, _Entry]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or header_bytes > min(size_bytes - 8, _HEADER_LIMIT):
            raise ConfigError(f"{path} is truncated, or no safetensors file", field=path.name)
        try:
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            base = 8 + header_bytes
            entries = {name: _entry(path, name, base, raw) for name, raw in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} has no readable header: {error}", field=path.name) from error
    end = max((entry.offset + entry.size_bytes for entry in entries.values()), default=base)
    if end > size_bytes:
        raise ConfigError(
            f"{path} is truncated: its header describes {end} bytes, it has {size_bytes}",
            field=path.name,
        )
    return entries


def _entry(path: Path, name: str, base: int, raw: dict[str, Any]) -> _Entry:
    begin, end = raw["data_offsets"]
    shape = tuple(int(size) for size in raw["shape"])
    if raw["dtype"] not in _DTYPES:
        raise ConfigError(
            f"has dtype {raw['dtype']}, only {', '.join(_DTYPES)} are supported (in {path})",
            field=name,
        )
    dtype = _DTYPES[raw["dtype"]]
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise ConfigError(f"has {end - begin} bytes for shape {shape} (in {path})", field=name)
    return _Entry(path, dtype, shape, base + begin, end - begin)


def _check(
    folder: Path,
    entries: Mapping[str, _Entry],
    expected: Mapping[str, tuple[int, ...]],
    optional: frozenset[str],
) -> None:
    for name, shape in expected.items():
        if name not in entries:
            raise ConfigError(
                f"is missing; config.json wants shape {shape} (in {folder})", field=name
            )
        found = entries[name]
        if found.shape != shape:
            raise ConfigError(
                f"has shape {found.shape}, config.json wants {shape} (in {found.path})", field=name
            )
    for name in entries.keys() - expected.keys() - optional:
        raise ConfigError(
            f"is in the checkpoint, but config.json describes no such tensor "
            f"(in {entries[name].path})",
            field=name,
        )


def _identity(folder: Path, files: list[Path]) -> str:
    """A hash of config, headers, sizes and evenly spread samples: fast, and blind only to a change
    that hits no sample."""
    digest = blake2b((folder / "config.json").read_bytes(), digest_size=16)
    for path in files:
        size_bytes = path.stat().st_size
        digest.update(size_bytes.to_bytes(8, "little"))
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            digest.update(file.read(header_bytes))
            for i in range(_NUM_SAMPLES):
                file.seek(8 + header_bytes + (size_bytes - 8 - header_bytes) * i // _NUM_SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
