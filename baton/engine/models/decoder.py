"""The decoder, as the papers draw it. It knows no family, no rank, no request and no checkpoint.

    x = embed(token_ids)
    for each layer:  x += attention(norm(x));  x += mlp(norm(x))
    logits = head(norm(x))

Every shape below follows from the weights handed in: a part of the heads and of the MLP's inner
dimension, with `output` and `down` summed over the parts, is the same model in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from baton.engine.attention.base import StepAttention
from baton.engine.attention.spec import AttentionSpec
from baton.engine.linears import Linear
from baton.engine.row_ops import RowOps

Norm = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class RmsNorm:
    """x / rms(x) * weight, over the last dimension. An `update` is added to x first, in place: what a
    layer adds to its input is added where it is read next, in one pass."""

    ops: RowOps
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor, update: Tensor | None = None) -> Tensor:
        if update is None:
            return self.ops.rms_norm(x, self.weight, self.eps)
        return self.ops.add_rms_norm(x, update, self.weight, self.eps)


@dataclass(slots=True)
class Rotary:
    """Rotates queries and keys by their positions. `cos`, `sin` [max_model_len, head_dim / 2]."""

    ops: RowOps
    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.ops.rope(x, positions, self.cos, self.sin)


@dataclass(slots=True)
class Attention:
    """Grouped-query attention of layer `index`."""

    index: int
    spec: AttentionSpec
    qkv: Linear
    output: Linear
    rotary: Rotary
    q_norm: Norm | None = None
    k_norm: Norm | None = None

    def __call__(self, x: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        num_heads, num_kv_heads = self.spec.num_heads, self.spec.num_kv_heads
        heads = self.qkv(x).view(x.shape[0], -1, self.spec.head_dim)
        qk, v = heads.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((num_heads, num_kv_heads), dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        qk = self.rotary(qk, positions)
        q, k = qk.split((num_heads, num_kv_heads), dim=1)
        attention.write(self.index, k, v)
        mixed = attention.attend(self.index, q, self.spec)
        return self.output(mixed.flatten(1))


@dataclass(slots=True)
class Mlp:
    """down(silu(gate(x)) * up(x)), gate and up in one GEMM."""

    ops: RowOps
    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.ops.silu_mul(self.gate_up(x)))


@dataclass(slots=True)
class Layer:
    """Returns what it adds to its input `x`, to which it has added `update`, what the layer before adds."""

    attention_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: Mlp

    def __call__(
        self, x: Tensor, update: Tensor | None, positions: Tensor, attention: StepAttention
    ) -> Tensor:
        mixed = self.attention(self.attention_norm(x, update), positions, attention)
        return self.mlp(self.mlp_norm(x, mixed))


@dataclass(slots=True)
class Decoder:
    """`embeddings` [vocab_size, hidden_size], perhaps narrower than the activations' `dtype`."""

    embeddings: Tensor
    dtype: torch.dtype
    layers: Sequence[Layer]
    norm: Norm
    head: Linear

    def forward(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """token_ids, positions int64 [num_tokens] -> hidden [num_tokens, hidden_size]."""
        x = embedding(token_ids, self.embeddings).to(self.dtype)
        update = None
        for layer in self.layers:
            update = layer(x, update, positions, attention)
        return x if update is None else x + update

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [num_rows, hidden_size] -> fp32 [num_rows, vocab_size]."""
        return self.head(self.norm(hidden)).float()
