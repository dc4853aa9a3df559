"""Turns the slices of a step plan into tensors, and checks what would otherwise corrupt memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from baton.errors import Internal
from engine.attention import AttentionBatch
from engine.batch import Slice


@dataclass(frozen=True, slots=True)
class StepLimits:
    vocab_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class StepInputs:
    """`token_ids` and `positions` int64 [num_tokens]; `last_rows`: each slice's last row."""

    token_ids: Tensor
    positions: Tensor
    attention: AttentionBatch


def build_inputs(slices: Sequence[Slice], limits: StepLimits) -> StepInputs:
    """The inputs of one forward pass over `slices`, on the device."""
    num_rows = np.array([len(piece.token_ids) for piece in slices], dtype=np.int64)
    starts = np.array([piece.start for piece in slices], dtype=np.int64)
    ends = np.cumsum(num_rows)
    first_rows = ends - num_rows
    token_ids = np.fromiter(chain.from_iterable(p.token_ids for p in slices), np.int64, ends[-1])
    slice_of_row = np.repeat(np.arange(len(slices)), num_rows)
    positions = np.arange(ends[-1]) - (first_rows - starts)[slice_of_row]

    block_size = limits.block_size
    num_needed = -(-(starts + num_rows) // block_size)
    tables = np.zeros((len(slices), int(num_needed.max())), dtype=np.int32)
    for table, piece, needed in zip(tables, slices, num_needed, strict=True):
        blocks = piece.block_table[:needed]
        table[: len(blocks)] = blocks
    _check(slices, limits, token_ids, tables)

    slots = tables[slice_of_row, positions // block_size].astype(np.int64) * block_size
    slots += positions % block_size

    def on_device(array: np.ndarray[tuple[int, ...], np.dtype[np.int64]], dtype: type) -> Tensor:
        return torch.from_numpy(array.astype(dtype, copy=False)).to(limits.device)

    return StepInputs(
        token_ids=on_device(token_ids, np.int64),
        positions=on_device(positions, np.int64),
        attention=AttentionBatch(
            slots=on_device(slots, np.int64),
            block_tables=torch.from_numpy(tables).to(limits.device),
            query_starts=on_device(np.concatenate(([0], ends)), np.int32),
            starts=on_device(starts, np.int32),
            slices=tuple(zip(first_rows.tolist(), num_rows.tolist(), starts.tolist(), strict=True)),
        ),
    )


def _check(
    slices: Sequence[Slice],
    limits: StepLimits,
    token_ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    tables: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
) -> None:
    """A wrong block or position would silently overwrite another request's KV."""
    for piece in slices:
        if not piece.token_ids or piece.start < 0 or piece.end > limits.max_model_len:
            raise Internal(
                f"a slice of {len(piece.token_ids)} tokens at position {piece.start} does not fit "
                f"max_model_len {limits.max_model_len}"
            )
        if len(piece.block_table) * limits.block_size < piece.end:
            raise Internal(f"{len(piece.block_table)} blocks do not cover position {piece.end - 1}")
        if len(piece.prompt_targets) > len(piece.token_ids):
            raise Internal("a slice has more prompt targets than rows")
    if token_ids.min() < 0 or token_ids.max() >= limits.vocab_size:
        raise Internal(f"a token id is outside the vocabulary of {limits.vocab_size}")
    if tables.min() < 0 or tables.max() >= limits.num_blocks:
        raise Internal(f"a block table names a block outside 0..{limits.num_blocks - 1}")
