"""What the decoder does to each row besides its GEMMs: norms, rotation, the gated activation.

Two implementations behind one seam: the engine's own kernels for fp32 on the CPU, and torch, which keeps
statistics in fp32 whatever the activations' dtype.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import silu

from baton.engine.kernels import Kernels


class RowOps(Protocol):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalises the last dimension of x [..., size]."""
        ...

    def add_rms_norm(self, x: Tensor, update: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Adds `update` to x [num_tokens, size], in place, and normalises that; may work in `update`."""
        ...

    def rope(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotates x [num_tokens, num_heads, head_dim] by its positions; may work in place."""
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, where x [num_tokens, 2 * size] holds gate, then up."""
        ...


class TorchRowOps:
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale).to(x.dtype) * weight

    def add_rms_norm(self, x: Tensor, update: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self.rms_norm(x.add_(update), weight, eps)

    def rope(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cosine, sine = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
        first, second = x.float().chunk(2, dim=-1)
        rotated = (first * cosine - second * sine, second * cosine + first * sine)
        return torch.cat(rotated, dim=-1).to(x.dtype)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate) * up


class CompiledRowOps:
    """fp32 on the CPU. A row's result does not depend on its neighbours."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty(x.shape)
        self._kernels.rms_norm(x, weight, eps, out)
        return out

    def add_rms_norm(self, x: Tensor, update: Tensor, weight: Tensor, eps: float) -> Tensor:
        self._kernels.add_rms_norm(update, x, weight, eps, update)
        return update

    def rope(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._kernels.rope(x, positions, cos, sin)
        return x

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        out = torch.empty(gate_up.shape[0], gate_up.shape[1] // 2)
        self._kernels.silu_mul(gate_up, out)
        return out


class RowByRow:
    """Another implementation's operations, one row at a time.

    torch splits elementwise work between threads and handles the tail of each part with scalar code,
    whose last bits differ from the vector code's; a row alone is always split alike.
    """

    def __init__(self, ops: RowOps) -> None:
        self._ops = ops

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.cat([self._ops.rms_norm(row, weight, eps) for row in x.split(1)])

    def add_rms_norm(self, x: Tensor, update: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = zip(x.split(1), update.split(1), strict=True)
        return torch.cat([self._ops.add_rms_norm(row, more, weight, eps) for row, more in rows])

    def rope(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows = zip(x.split(1), positions.split(1), strict=True)
        return torch.cat([self._ops.rope(row, position, cos, sin) for row, position in rows])

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return torch.cat([self._ops.silu_mul(row) for row in gate_up.split(1)])
