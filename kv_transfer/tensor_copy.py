"""Copying and summing pieces by tensor operations: on GPUs, and on CPUs where nothing was compiled.

Blocks that are adjacent in both pools move in one operation over all layers, of which each is as far from
the next; the sums of all blocks are one number each, at the end. So a portion is few launches and no wait.

    memory as words    [num_layers, num_blocks, piece_words] int64
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kv_transfer.base import Write
from kv_transfer.checksum import MODULUS, WORD_BYTES
from kv_transfer.layout import PoolLayout, Slice

_CHUNK_WORDS = 1 << 22  # bounds temporary tensors: 32 MB each


def copy_pieces(source: Tensor, destination: Tensor, slices: Sequence[Slice], write: Write) -> None:
    """Queues the copies of `write` on this thread's stream. Both memories as words."""
    layers = slice(write.layer, write.layers.stop)
    for from_blocks, to_blocks in _runs(write):
        for part in slices:
            from_words, to_words = _words(part.source, part), _words(part.destination, part)
            moved = source[layers, from_blocks, from_words]
            destination[layers, to_blocks, to_words].copy_(moved, non_blocking=True)


def sum_pieces(
    memory: Tensor, blocks: Sequence[int], layers: range, slices: Sequence[Slice], piece_words: int
) -> Tensor:
    """Of each block [num_blocks] int64, equal modulo 2^64 to its part of the checksum of a block with
    pieces of `piece_words` (`kv_transfer.checksum`). Queued on this thread's stream."""
    index = _on_device(torch.tensor(blocks, dtype=torch.int64, device="cpu"), memory.device)
    sums = torch.zeros_like(index)
    for part in slices:
        words = _words(part.source, part)
        places = torch.arange(words.stop - words.start, dtype=torch.int64, device=memory.device)
        for layer in layers:
            first = layer * piece_words + part.destination // WORD_BYTES
            weights = (places + first).mul_(2).add_(1)
            some = max(1, _CHUNK_WORDS // places.numel())
            for begin in range(0, len(blocks), some):
                found = memory[layer, index[begin : begin + some], words]
                folded = (found >> 32).bitwise_and_(0xFFFFFFFF).bitwise_xor_(found)
                sums[begin : begin + some] += folded.mul_(weights).sum(1)
    return sums


def as_checksums(sums: Tensor) -> list[int]:
    """Waits for them. Each in [0, 2^64)."""
    return [value % MODULUS for value in sums.tolist()]


def as_words(memory: Tensor, layout: PoolLayout) -> Tensor:
    return memory.view(torch.int64).view(layout.num_layers, layout.num_blocks, layout.piece_words)


def _on_device(index: Tensor, device: torch.device) -> Tensor:
    """From pinned memory, since a copy from any other would wait for all that is queued."""
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index


def _words(begin_byte: int, part: Slice) -> slice:
    return slice(begin_byte // WORD_BYTES, (begin_byte + part.size_bytes) // WORD_BYTES)


def _runs(write: Write) -> Iterator[tuple[slice, slice]]:
    """Blocks that are adjacent in both pools: where they lie in the one and in the other."""
    sources, targets = write.source_blocks, write.destination_blocks
    first = 0
    for end in range(1, len(sources) + 1):
        goes_on = end < len(sources) and (sources[end], targets[end]) == (
            sources[end - 1] + 1,
            targets[end - 1] + 1,
        )
        if not goes_on:
            length = end - first
            yield (
                slice(sources[first], sources[first] + length),
                slice(targets[first], targets[first] + length),
            )
            first = end
