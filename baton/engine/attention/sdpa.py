"""Paged attention with torch alone: gathers blocks and calls SDPA. CPU and CUDA.

Where the compiled kernel runs, this is the reference it is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from baton.engine.attention.base import AttentionBatch
from baton.engine.attention.spec import AttentionSpec
from baton.engine.kv_cache import LayerCache

# Decode rows whose lengths differ by at most this factor share one padded SDPA call.
_PADDING_FACTOR = 1.25


class TorchAttention:
    """Decode rows of near-equal length share one call; every longer slice has its own.

    `row_by_row`: every query row has calls of its own over exactly the positions it sees, so that its
    result does not depend on the batch or the chunk it came in. Slow; for the deterministic mode.
    """

    def __init__(self, row_by_row: bool = False) -> None:
        self._row_by_row = row_by_row

    def write(self, layer_cache: LayerCache, batch: AttentionBatch, k: Tensor, v: Tensor) -> None:
        layer_cache.write(batch.slots, k, v)

    def attend(
        self, layer_cache: LayerCache, batch: AttentionBatch, q: Tensor, spec: AttentionSpec
    ) -> Tensor:
        out = torch.empty_like(q)
        single = []
        for index, (first_row, num_rows, start) in enumerate(batch.slices):
            if num_rows == 1 and not self._row_by_row:
                single.append((start + 1, index))
                continue
            blocks = batch.block_tables[index]
            step = 1 if self._row_by_row else num_rows
            for offset in range(0, num_rows, step):
                rows = slice(first_row + offset, first_row + offset + step)
                position = start + offset
                out[rows] = self._attend_slice(layer_cache, blocks, q[rows], position, spec)
        block_size = layer_cache.block_size
        for group in _near_equal(sorted(single)):
            rows_in_group = [batch.slices[index][0] for index in group]
            longest = batch.slices[group[-1]][2] + 1
            tables = batch.block_tables[group, : -(-longest // block_size)]
            starts = batch.starts[group]
            out[rows_in_group] = self._attend_group(
                layer_cache, tables, starts, q[rows_in_group], spec
            )
        return out

    def _attend_slice(
        self, layer_cache: LayerCache, blocks: Tensor, q: Tensor, start: int, spec: AttentionSpec
    ) -> Tensor:
        """Rows at positions start, start + 1, ... of one sample. -> [num_rows, num_heads, head_dim]"""
        num_rows, num_heads, head_dim = q.shape
        block_size, num_kv_heads = layer_cache.block_size, layer_cache.num_kv_heads
        end, window = start + num_rows, spec.window
        begin = max(start + 1 - window, 0) if window else 0  # the oldest position any row sees
        first_block = begin // block_size
        used = blocks[first_block : -(-end // block_size)]
        # [blocks, 2, heads, block_size, dim] -> [2, heads, positions, dim]
        kv = layer_cache.read(used, q.dtype).permute(1, 2, 0, 3, 4)
        first = first_block * block_size
        kv = kv.reshape(2, num_kv_heads, -1, head_dim)[:, :, begin - first : end - first]
        k, v = kv.unsqueeze(2)
        # [rows, kv_heads, group, dim] -> [kv_heads, group, rows, dim]: a group shares its k and v
        grouped = q.view(num_rows, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        mask = None
        if num_rows > 1:
            query = torch.arange(start, end, device=q.device).unsqueeze(1)
            key = torch.arange(begin, end, device=q.device)
            mask = key <= query
            if window:
                mask &= key > query - window
        shape = (num_kv_heads, num_heads // num_kv_heads, end - begin, head_dim)
        out = sdpa(grouped, k.expand(shape), v.expand(shape), attn_mask=mask, scale=spec.scale)
        return out.permute(2, 0, 1, 3).reshape(num_rows, num_heads, head_dim)

    def _attend_group(
        self,
        layer_cache: LayerCache,
        tables: Tensor,
        starts: Tensor,
        q: Tensor,
        spec: AttentionSpec,
    ) -> Tensor:
        """One row of each of several samples, padded to the longest. -> [rows, num_heads, head_dim]"""
        num_rows, num_heads, head_dim = q.shape
        num_kv_heads = layer_cache.num_kv_heads
        # [rows, blocks, 2, heads, block_size, dim] -> [2, rows, heads, positions, dim]
        kv = layer_cache.read(tables, q.dtype).permute(2, 0, 3, 1, 4, 5)
        kv = kv.reshape(2, num_rows, num_kv_heads, -1, head_dim)
        key = torch.arange(kv.shape[3], device=q.device)
        mask = key <= starts.unsqueeze(1)
        if spec.window:
            mask &= key > starts.unsqueeze(1) - spec.window
        # What is masked may be stale, and NaN stays NaN whatever is added to it or multiplied with it.
        k, v = kv.masked_fill(~mask[:, None, :, None], 0)
        grouped = q.reshape(num_rows, num_kv_heads, -1, head_dim)
        out = sdpa(grouped, k, v, attn_mask=mask[:, None, None], scale=spec.scale)
        return out.reshape(num_rows, num_heads, head_dim)


def _near_equal(by_length: list[tuple[int, int]]) -> list[list[int]]:
    """Groups the indices of sorted (length, index) so that padding stays small."""
    groups: list[list[int]] = []
    shortest = 0
    for length, index in by_length:
        if not groups or length > shortest * _PADDING_FACTOR + 64:
            groups.append([])
            shortest = length
        groups[-1].append(index)
    return groups
