"""A rank's KV pool as bytes, and the copying between two pools that one process can address.

Knows the layout; neither what the bytes mean nor how a pool came to be addressable.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baton.errors import ConfigError
from kv_transfer import kernels
from kv_transfer.base import Write
from kv_transfer.checksum import WORD_BYTES
from kv_transfer.layout import PoolLayout, Slice
from kv_transfer.tensor_copy import as_checksums, as_words, copy_pieces, sum_pieces


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """`memory` [layout.size_bytes], uint8."""

    layout: PoolLayout
    memory: Tensor

    def __post_init__(self) -> None:
        if self.memory.dtype != torch.uint8 or self.memory.shape != (self.layout.size_bytes,):
            raise ConfigError(
                f"is {self.memory.dtype} {tuple(self.memory.shape)}; a pool of "
                f"{self.layout.num_blocks} blocks is uint8 [{self.layout.size_bytes}]",
                field="memory",
            )

    def piece(self, layer: int, block: int) -> Tensor:
        """One layer of one block [piece_bytes]."""
        begin = self.layout.offset(layer, block)
        return self.memory[begin : begin + self.layout.piece_bytes]

    def checksum(self, block: int) -> int:
        """Of the block as it lies here now, over all layers."""
        layout = self.layout
        whole = Slice(0, 0, layout.piece_bytes)
        return source_checksums(
            self, layout, [whole], Write(0, [block], [block], layout.num_layers)
        )[0]


def copy_blocks(
    source: Pool, destination: Pool, slices: Sequence[Slice], write: Write, *, checksums: bool
) -> list[int]:
    """Performs `write`, of every piece the planned `slices`. Returns its part of the checksum of each
    destination block, zeros without `checksums`."""
    native = _native(source, destination)
    if native is None:
        return _copy_by_tensors(source, destination, slices, write, checksums=checksums)
    table = _table(source.layout, destination.layout, slices, write)
    sums = native.copy_ranges(
        source.memory.data_ptr(), destination.memory.data_ptr(), table, checksums=checksums
    )
    return _per_block(sums, write)


def write_slices(
    source: PoolLayout, destination: PoolLayout, slices: Sequence[Slice], write: Write
) -> list[Slice]:
    """The ranges of the two pools that `write` copies, layer after layer, adjacent ones made one."""
    table = _table(source, destination, slices, write)
    if not len(table):
        return []
    from_ends, to_ends = table[:, 0] + table[:, 2], table[:, 1] + table[:, 2]
    parts = (from_ends[:-1] != table[1:, 0]) | (to_ends[:-1] != table[1:, 1])
    firsts = np.concatenate(([0], np.flatnonzero(parts) + 1))
    sizes = np.add.reduceat(table[:, 2], firsts)
    merged = np.column_stack((table[firsts, :2], sizes)).tolist()
    return [Slice(from_byte, to_byte, size_bytes) for from_byte, to_byte, size_bytes in merged]


def source_checksums(
    source: Pool,
    destination: PoolLayout,
    slices: Sequence[Slice],
    write: Write,
    *,
    checksums: bool = True,
) -> list[int]:
    """What `copy_blocks` would return, without copying."""
    if not checksums:
        return [0] * len(write.source_blocks)
    native = _native(source)
    if native is not None:
        table = _table(source.layout, destination, slices, write)
        return _per_block(native.sum_ranges(source.memory.data_ptr(), table), write)
    memory = as_words(source.memory, source.layout)
    words = destination.piece_words
    return as_checksums(sum_pieces(memory, write.source_blocks, write.layers, slices, words))


def _native(*pools: Pool) -> kernels.TransferKernels | None:
    on_cpu = all(pool.memory.device.type == "cpu" for pool in pools)
    return kernels.load() if on_cpu else None


def _table(
    source: PoolLayout, destination: PoolLayout, slices: Sequence[Slice], write: Write
) -> kernels.Ranges:
    """The ranges of `write`: layer by layer, block by block, slice by slice."""
    steps = (source.offset(1, 0), destination.offset(1, 0), 0, destination.piece_words)
    numbers = np.arange(write.layer, write.layers.stop, dtype=np.uint64)
    layers = numbers[:, None] * np.array(steps, np.uint64)
    blocks = np.zeros((len(write.source_blocks), 4), np.uint64)
    blocks[:, 0] = np.array(write.source_blocks, np.uint64) * source.piece_bytes
    blocks[:, 1] = np.array(write.destination_blocks, np.uint64) * destination.piece_bytes
    table = layers[:, None, None] + blocks[:, None] + _parts(tuple(slices))
    return table.reshape(-1, 4)


@functools.lru_cache(maxsize=64)
def _parts(slices: tuple[Slice, ...]) -> kernels.Ranges:
    """A piece's slices as ranges [num_slices, 4]."""
    rows = [(s.source, s.destination, s.size_bytes, s.destination // WORD_BYTES) for s in slices]
    return np.array(rows, np.uint64).reshape(-1, 4)


def _per_block(sums: NDArray[np.uint64] | None, write: Write) -> list[int]:
    """Parts of checksums added up, modulo 2^64; zeros where there are none."""
    num_blocks = len(write.source_blocks)
    if sums is None or not num_blocks:
        return [0] * num_blocks
    by_block = sums.reshape(write.num_layers, num_blocks, -1)
    found: list[int] = by_block.sum(axis=(0, 2), dtype=np.uint64).tolist()
    return found


def _copy_by_tensors(
    source: Pool, destination: Pool, slices: Sequence[Slice], write: Write, *, checksums: bool
) -> list[int]:
    """`copy_blocks` on any device."""
    from_words = as_words(source.memory, source.layout)
    copy_pieces(from_words, as_words(destination.memory, destination.layout), slices, write)
    return source_checksums(source, destination.layout, slices, write, checksums=checksums)
