"""Reads what the router needs of a Hugging Face checkpoint folder's JSON files; weights it never
sees.

    config.json               vocab_size, max_position_embeddings, bos and eos token ids   (needed)
    generation_config.json    more eos token ids, sampling defaults                      (optional)

Of generation_config.json only sampling values that are stated count; `do_sample: false` does not
make an unset temperature 0, since clients of serving APIs expect 1 where a model states none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.errors import ConfigError, InvalidArgument
from router.request import GenerateInput, SamplingDefaults, SamplingInput
from router.validation import ModelLimits, check_request


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """`eos_token_ids`: union of both files, sorted; empty where neither names one. The tokenizer's own is
    added by whoever reads that."""

    vocab_size: int
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    defaults: SamplingDefaults


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    config = read_json(folder / "config.json")
    generation = {}
    if (folder / "generation_config.json").exists():
        generation = read_json(folder / "generation_config.json")
    vocab_size = _positive_int(config, "vocab_size", folder)
    max_position_embeddings = _positive_int(config, "max_position_embeddings", folder)
    eos_token_ids = {
        *_token_ids(config, "eos_token_id", folder / "config.json"),
        *_token_ids(generation, "eos_token_id", folder / "generation_config.json"),
    }
    bos = _token_ids(config, "bos_token_id", folder / "config.json")
    return CheckpointConfig(
        vocab_size=vocab_size,
        max_position_embeddings=max_position_embeddings,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        defaults=_sampling_defaults(generation, folder / "generation_config.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; a missing, unreadable or malformed one is a `ConfigError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", field=path.name) from error
    except ValueError as error:  # of JSON or of UTF-8
        raise ConfigError(f"{path} is not valid JSON: {error}", field=path.name) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object", field=path.name)
    return value


def _positive_int(config: dict[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = "is missing" if value is None else f"is {value!r}"
    raise ConfigError(
        f"{name} must be a positive integer in {folder / 'config.json'}, {found}",
        field=f"config.json.{name}",
    )


def _token_ids(config: dict[str, Any], name: str, path: Path) -> list[int]:
    value = config.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        return ids
    raise ConfigError(
        f"{name} must be a token id or a list of them in {path}, is {value!r}",
        field=f"{path.name}.{name}",
    )


def _sampling_defaults(generation: dict[str, Any], path: Path) -> SamplingDefaults:
    stated: dict[str, Any] = {}
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        value = generation.get(name)
        if value is None:
            continue
        kinds = int if name == "top_k" else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ConfigError(f"{name} in {path} is {value!r}", field=f"{path.name}.{name}")
        stated[name] = value
    probe = GenerateInput(prompt=(0,), sampling=SamplingInput(**stated))
    try:  # the file's values must be such that a client could have sent them
        check_request(probe, ModelLimits(vocab_size=1, max_model_len=2))
    except InvalidArgument as error:
        name = error.field.removeprefix("sampling.")
        raise ConfigError(f"in {path}: {error}", field=f"{path.name}.{name}") from error
    return SamplingDefaults(**stated)
