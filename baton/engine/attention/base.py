"""Attention over the paged KV cache of one step, behind a seam of two methods.

`StepAttention` is what the model sees: per layer, `write` the step's k and v, then `attend`. Which
backend does the work is chosen once at load: the compiled kernel on the CPU, torch elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from baton.engine.attention.spec import AttentionSpec
from baton.engine.kv_cache import KvCache, LayerCache


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where the rows of one step lie. A slice is a run of rows of one sample.

    `slots` int64 [num_tokens]: block * block_size + offset, where each row's k and v go.
    `block_tables` int32 [num_slices, max_blocks], padded with 0. `query_starts` int32 [num_slices + 1]:
    slice i has rows query_starts[i] : query_starts[i + 1], the first at position starts[i] (int32).
    `slices`: the same three on the host, (first row, number of rows, position of the first row).
    """

    slots: Tensor
    block_tables: Tensor
    query_starts: Tensor
    starts: Tensor
    slices: tuple[tuple[int, int, int], ...]


class AttentionBackend(Protocol):
    """q [num_tokens, num_heads, head_dim]; k and v [num_tokens, num_kv_heads, head_dim]."""

    def write(
        self, layer_cache: LayerCache, batch: AttentionBatch, k: Tensor, v: Tensor
    ) -> None: ...

    def attend(
        self, layer_cache: LayerCache, batch: AttentionBatch, q: Tensor, spec: AttentionSpec
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class StepAttention:
    """One step's view of the cache. `on_layer` hears of each layer whose k and v are all written, so
    that a hand-off can send them while the next layer computes."""

    backend: AttentionBackend
    cache: KvCache
    batch: AttentionBatch
    on_layer: Callable[[int], None] | None = None

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.backend.write(self.cache.layers[layer], self.batch, k, v)
        if self.on_layer is not None:
            self.on_layer(layer)

    def attend(self, layer: int, q: Tensor, spec: AttentionSpec) -> Tensor:
        return self.backend.attend(self.cache.layers[layer], self.batch, q, spec)
