"""What attention is in one layer: the one value that the model, the KV cache and the backends share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention. `window`: how many positions a token sees, its own among them; 0 is
    all. `scale`: what a product of query and key is multiplied with before the softmax."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim
