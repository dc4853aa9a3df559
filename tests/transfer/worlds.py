"""A decode rank's pool and the transports that reach it, as the tests use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from kv_transfer.base import Link, Receiver, Sender, TransferId, Write
from kv_transfer.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from kv_transfer.layout import PoolLayout
from kv_transfer.loopback import LoopbackReceiver, LoopbackSender
from kv_transfer.nixl import NixlReceiver, NixlSender
from kv_transfer.nixl_ends import is_installed as nixl_is_installed
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory, ShmReceiver, ShmSender
from kv_transfer.torch_dist import TorchDistReceiver, TorchDistSender

MAPPED_KINDS = ("shm", "cuda_ipc")  # nobody can take a mapping back
needs_nixl = pytest.mark.skipif(not nixl_is_installed(), reason="needs the extra 'rdma'")
BETWEEN_PROCESSES = ("shm", "torch_dist", pytest.param("nixl", marks=needs_nixl))
KINDS = ("loopback", *BETWEEN_PROCESSES)
TIMEOUT_S = 2.0
SMALL = PoolLayout(
    num_layers=3, num_blocks=16, num_kv_heads=2, block_size=4, head_dim=8, dtype="fp32"
)
BIG = PoolLayout(
    num_layers=4, num_blocks=64, num_kv_heads=4, block_size=64, head_dim=64, dtype="fp32"
)


@dataclass(slots=True)
class Decode:
    """D's side; `receiver` is to be closed."""

    pool: Pool
    receiver: Receiver


def make_decode(kind: str, layout: PoolLayout) -> Decode:
    if kind == "shm":
        shared = SharedMemory(layout.size_bytes)
        return Decode(Pool(layout, shared.memory), ShmReceiver(layout, shared))
    pool = Pool(layout, torch.zeros(layout.size_bytes, dtype=torch.uint8))
    if kind == "cuda_ipc":
        torch.cuda.synchronize()  # it is zero before others write, on streams of their own
        return Decode(pool, CudaIpcReceiver(pool))
    if kind == "loopback":
        return Decode(pool, LoopbackReceiver(pool))
    if kind == "nixl":
        return Decode(pool, NixlReceiver(pool, "127.0.0.1", TIMEOUT_S))
    return Decode(pool, TorchDistReceiver(pool, "127.0.0.1", TIMEOUT_S))


def make_sender(kind: str, pool: Pool, *, checksums: bool = True) -> Sender:
    if kind == "cuda_ipc":
        return CudaIpcSender(pool, checksums=checksums)
    if kind == "shm":
        return ShmSender(pool, checksums=checksums)
    if kind == "loopback":
        return LoopbackSender(pool, checksums=checksums)
    if kind == "nixl":
        return NixlSender(pool, TIMEOUT_S, checksums=checksums)
    return TorchDistSender(pool, TIMEOUT_S, checksums=checksums)


def random_pool(layout: PoolLayout, seed: int = 1) -> Pool:
    generator = torch.Generator("cpu").manual_seed(seed)
    memory = torch.randint(
        1, 256, (layout.size_bytes,), dtype=torch.uint8, generator=generator, device="cpu"
    )  # no zeros: what has landed is seen
    return Pool(layout, memory.to(torch.get_default_device()))


def send(
    link: Link, transfer: TransferId, num_layers: int, source: Sequence[int], target: Sequence[int]
) -> list[int]:
    """Writes whole blocks; the checksum of each, as D is told."""
    futures = [link.write(transfer, Write(layer, source, target)) for layer in range(num_layers)]
    sums = [future.result(timeout=30).checksums for future in futures]
    return [sum(column) % (1 << 64) for column in zip(*sums, strict=True)]
