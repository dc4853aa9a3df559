"""The hand-off's transports against what the machine gives, and how much of a transfer prefill hides.

Two processes, as in a cluster: this one is the prefill rank and writes, the other is the decode rank. The
limit of a transport is measured in the same rounds, in turn with it:

    cuda_ipc    a copy of as many bytes within the GPU; both processes have their pools on one
    shm         memcpy of as many bytes, one thread
    nixl        memcpy, as for shm
    torch_dist  as many bytes through a raw TCP socket, blocking, from one process to the other

With checksums on, a write ends when the bytes lie there and the writer knows their sums; that the reader
then reads them once more is timed apart (`verify_gb_per_s`), and must give the same sums.
"""

from __future__ import annotations

import ctypes
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from baton.bench import kv_hidden, kv_reader
from baton.bench.kv_reader import HOST, TIMEOUT_S, Reader
from baton.bench.rounds import OnStep, Steps
from baton.bench.statistics import median, pairwise_ratio
from baton.errors import BatonError, IntegrityError
from kv_transfer.base import Link, TransferId, Write
from kv_transfer.choose import TRANSPORTS, Senders
from kv_transfer.layout import PoolLayout
from kv_transfer.pool import Pool

# llama-125m's blocks of 64 tokens in fp32: 12 layers of 131 KB
_NUM_LAYERS, _HEADS, _BLOCK_SIZE, _HEAD_DIM = 12, 4, 64, 64
_MOST_BLOCKS = 64
_ACK_BYTES = 1


@dataclass(frozen=True, slots=True)
class KvSettings:
    """`num_blocks`: payloads, in blocks of 1.6 MB. `scattered` takes blocks in no order, so that none are
    adjacent in both pools."""

    transports: tuple[str, ...] = TRANSPORTS
    num_blocks: tuple[int, ...] = (1, 11, 42)
    num_rounds: int = 21
    scattered: bool = False
    hidden_ratios: tuple[float, ...] = (0.5, 0.9)
    hidden_rounds: int = 5
    seed: int = 0


def measure(settings: KvSettings, on_step: OnStep) -> dict[str, Any]:
    started_s = time.monotonic()
    num_transports = len(settings.transports) * len(settings.num_blocks)
    num_hidden = len(settings.hidden_ratios) * settings.hidden_rounds
    steps = Steps(num_transports + num_hidden, on_step)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for transport in settings.transports:
            try:
                rows += _rows(transport, settings, steps)
            except BatonError as error:
                skipped.append({"transport": transport, "reason": str(error)})
        hidden = [
            kv_hidden.row(ratio, settings.hidden_rounds, steps) for ratio in settings.hidden_ratios
        ]
    finally:
        torch.set_num_threads(num_threads)
    return {
        "rows": rows,
        "hidden": hidden,
        "skipped": skipped,
        "scattered": settings.scattered,
        "duration_s": time.monotonic() - started_s,
    }


@dataclass(slots=True)
class _Times:
    """Of one payload, in seconds, one per round."""

    limit: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    summed: list[float] = field(default_factory=list)
    verify: list[float] = field(default_factory=list)


def _rows(transport: str, settings: KvSettings, steps: Steps) -> list[dict[str, Any]]:
    layout = PoolLayout(_NUM_LAYERS, _MOST_BLOCKS, _HEADS, _BLOCK_SIZE, _HEAD_DIM, "fp32")
    generator = torch.Generator().manual_seed(settings.seed)
    memory = torch.randint(0, 256, (layout.size_bytes,), dtype=torch.uint8, generator=generator)
    pool = Pool(layout, memory.to(kv_reader.device(transport)))
    Senders(pool, TIMEOUT_S, [transport])  # tells where it is not possible here
    rows = []
    with (
        kv_reader.started(layout, transport) as reader,
        socket.create_connection((HOST, reader.port)) as raw,
        closing(_connect(pool, transport, reader, checksums=False)) as plain,
        closing(_connect(pool, transport, reader, checksums=True)) as summed,
    ):
        limits = {
            "raw socket": lambda: _raw_socket(raw, reader, pool),
            "memcpy": lambda: _memcpy(pool),
            "device copy": lambda: _device_copy(pool),
        }
        limit = limits[_limit_name(transport)]()
        side = _Side(pool, reader, {False: plain, True: summed}, limit)
        for num_blocks in settings.num_blocks:
            times = side.rounds(num_blocks, settings)
            size_bytes = num_blocks * layout.block_bytes
            rows += [_row(transport, on, size_bytes, times) for on in (False, True)]
            steps.end(f"{transport}, {size_bytes / 1e6:.1f} MB")
    return rows


def _connect(pool: Pool, transport: str, reader: Reader, *, checksums: bool) -> Link:
    _, link = Senders(pool, TIMEOUT_S, [transport], checksums=checksums).connect(reader.offer)
    return link


@dataclass(slots=True)
class _Side:
    """The writing rank. `limit(size_bytes)`: the seconds that the machine needs for as much."""

    pool: Pool
    reader: Reader
    links: Mapping[bool, Link]
    limit: Callable[[int], float]
    numbers: count[int] = field(default_factory=count)

    def rounds(self, num_blocks: int, settings: KvSettings) -> _Times:
        times = _Times()
        dice = random.Random(settings.seed)
        for number in range(settings.num_rounds + 1):
            blocks = range(num_blocks)
            targets: Sequence[int] = blocks
            if settings.scattered:
                targets = dice.sample(range(_MOST_BLOCKS), num_blocks)
            limit_s = self.limit(num_blocks * self.pool.layout.block_bytes)
            plain_s, _ = self._write(self.links[False], blocks, targets)
            summed_s, sums = self._write(self.links[True], blocks, targets)
            begin_s = time.perf_counter()
            found = self.reader.checksums(targets)
            verify_s = time.perf_counter() - begin_s
            if found != sums:
                raise IntegrityError("what lies in the reader's pool is not what was written")
            if number:  # the first round warms up
                times.limit.append(limit_s)
                times.plain.append(plain_s)
                times.summed.append(summed_s)
                times.verify.append(verify_s)
        return times

    def _write(
        self, link: Link, blocks: Sequence[int], targets: Sequence[int]
    ) -> tuple[float, list[int]]:
        """Every layer of the blocks; the seconds, and each block's checksum."""
        transfer = TransferId("bench", next(self.numbers))
        self.reader.open(transfer, targets)
        begin_s = time.perf_counter()
        link.open(transfer, targets)
        written = link.write(transfer, Write(0, blocks, targets, _NUM_LAYERS)).result()
        elapsed_s = time.perf_counter() - begin_s
        link.fence(transfer)
        return elapsed_s, list(written.checksums)


def _limit_name(transport: str) -> str:
    return {"torch_dist": "raw socket", "cuda_ipc": "device copy"}.get(transport, "memcpy")


def _device_copy(pool: Pool) -> Callable[[int], float]:
    target = torch.ones_like(pool.memory)

    def limit(size_bytes: int) -> float:
        torch.cuda.synchronize()
        begin_s = time.perf_counter()
        target[:size_bytes].copy_(pool.memory[:size_bytes])
        torch.cuda.synchronize()
        return time.perf_counter() - begin_s

    return limit


def _memcpy(pool: Pool) -> Callable[[int], float]:
    target = torch.ones_like(pool.memory)

    def limit(size_bytes: int) -> float:
        begin_s = time.perf_counter()
        ctypes.memmove(target.data_ptr(), pool.memory.data_ptr(), size_bytes)
        return time.perf_counter() - begin_s

    return limit


def _raw_socket(raw: socket.socket, reader: Reader, pool: Pool) -> Callable[[int], float]:
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    memory = memoryview(pool.memory.numpy())  # type: ignore[arg-type]

    def limit(size_bytes: int) -> float:
        reader.receive(size_bytes)
        begin_s = time.perf_counter()
        raw.sendall(memory[:size_bytes])
        raw.recv(_ACK_BYTES)
        return time.perf_counter() - begin_s

    return limit


def _row(transport: str, checksum: bool, size_bytes: int, times: _Times) -> dict[str, Any]:
    ours = times.summed if checksum else times.plain
    fraction = pairwise_ratio(times.limit, ours)  # of rates: the inverse of the times
    row = {
        "transport": transport,
        "checksum": checksum,
        "payload_bytes": size_bytes,
        "gb_per_s": size_bytes / median(ours) / 1e9,
        "limit_gb_per_s": size_bytes / median(times.limit) / 1e9,
        "limit": _limit_name(transport),
        "fraction": fraction.median,
        "ci95": fraction.ci95,
        "n": fraction.n,
        "latency_us": 1e6 * median(ours),
    }
    if checksum:
        row["verify_gb_per_s"] = size_bytes / median(times.verify) / 1e9
    return row
