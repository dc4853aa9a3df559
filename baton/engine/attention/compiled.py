"""Paged attention by the engine's own kernels: reads blocks where they lie. CPU only.

A row is reduced over its positions in one fixed order, so it is also the deterministic mode's backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBatch
from baton.engine.attention.spec import AttentionSpec
from baton.engine.kernels import MAX_GROUP, MAX_HEAD_DIM, Kernels
from baton.engine.kv_cache import LayerCache


class CompiledAttention:
    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    @staticmethod
    def supports(spec: AttentionSpec) -> bool:
        group = spec.num_heads // spec.num_kv_heads
        return spec.head_dim <= MAX_HEAD_DIM and group <= MAX_GROUP

    def write(self, layer_cache: LayerCache, batch: AttentionBatch, k: Tensor, v: Tensor) -> None:
        self._kernels.write_kv(layer_cache, batch.slots, k, v)

    def attend(
        self, layer_cache: LayerCache, batch: AttentionBatch, q: Tensor, spec: AttentionSpec
    ) -> Tensor:
        out = torch.empty(q.shape)
        self._kernels.attend(
            q,
            layer_cache,
            batch.block_tables,
            batch.query_starts,
            batch.starts,
            spec.scale,
            spec.window,
            out,
        )
        return out
