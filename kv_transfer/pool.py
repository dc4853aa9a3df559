"""A rank's KV pool as bytes, and the copying between two pools that one process can address.

Knows the layout; neither what the bytes mean nor how a pool came to be addressable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ConfigError
from kv_transfer.base import Write
from kv_transfer.checksum import MODULUS, checksum, copy_checksum
from kv_transfer.layout import PoolLayout, Slice, pool_slices


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
        words = self.layout.piece_words
        return (
            sum(
                checksum(self.piece(layer, block), layer * words)
                for layer in range(self.layout.num_layers)
            )
            % MODULUS
        )


def copy_blocks(
    source: Pool, destination: Pool, slices: Sequence[Slice], write: Write, *, checksums: bool
) -> list[int]:
    """Performs `write`, of every piece the planned `slices`. Returns its part of the checksum of each
    destination block, zeros without `checksums`."""
    blocks = list(zip(write.source_blocks, write.destination_blocks, strict=True))
    if not checksums:
        for part in pool_slices(source.layout, destination.layout, write.layer, blocks, slices):
            _range(destination, part.destination, part).copy_(_range(source, part.source, part))
        return [0] * len(blocks)
    first_word = write.layer * destination.layout.piece_words
    sums: list[int] = []
    for source_block, destination_block in blocks:
        from_piece = source.piece(write.layer, source_block)
        to_piece = destination.piece(write.layer, destination_block)
        total = 0
        for part in slices:
            from_part = from_piece[part.source : part.source + part.size_bytes]
            to_part = to_piece[part.destination : part.destination + part.size_bytes]
            total += copy_checksum(from_part, to_part, first_word + part.destination // 8)
        sums.append(total % MODULUS)
    return sums


def _range(pool: Pool, begin: int, part: Slice) -> Tensor:
    return pool.memory[begin : begin + part.size_bytes]


def source_checksums(
    source: Pool, destination: PoolLayout, slices: Sequence[Slice], write: Write
) -> list[int]:
    """What `copy_blocks` would return, without copying."""
    first_word = write.layer * destination.piece_words
    sums: list[int] = []
    for block in write.source_blocks:
        piece = source.piece(write.layer, block)
        sums.append(
            sum(
                checksum(
                    piece[part.source : part.source + part.size_bytes],
                    first_word + part.destination // 8,
                )
                for part in slices
            )
            % MODULUS
        )
    return sums
