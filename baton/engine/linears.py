"""Linear layers by how their weights are stored; the one module that touches torch.ops.quantized.

A linear maps [num_rows, in_features] to [num_rows, out_features]. It is built from a plain weight
[out_features, in_features], which the caller may drop afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

Linear = Callable[[Tensor], Tensor]


class PlainLinear:
    """Weights in the dtype of the activations: fp32 on the CPU, bf16 or fp16 on CUDA."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class PackedFp16Linear:
    """FBGEMM: weights packed as fp16, activations, bias and arithmetic in fp32.

    The pack is opaque and owns its memory. Half the bytes of fp32, and memory bandwidth is what bounds
    a decode step. The pack saturates silently beyond fp16's range, so the loader checks first.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._pack: Any = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        # Of its overloads; to find it at every call takes as long as a small GEMM.
        self._linear: Any = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = self._linear(x, self._pack)
        return out


class TiledLinear:
    """fp32, bit-exact for a row whatever other rows are there.

    A GEMM library picks its kernel, and with it the order of the sums, by the number of rows; MKL gives
    other last bits for 1 or 2 rows than for 4 or more. Here every call has exactly TILE_ROWS rows. Among
    calls of one shape a row's result does not depend on its place in the tile as long as every row
    starts at the same alignment: found by trying (rows of 33 floats differ, multiples of 4 do not),
    so rows are padded to whole cache lines. tests/engine/test_models_exact.py keeps it true.
    """

    TILE_ROWS = 16
    _LINE = 16  # floats in a cache line

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._num_padding = -weight.shape[1] % self._LINE
        self.weight = pad(weight, (0, self._num_padding)) if self._num_padding else weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = x.shape[0]
        padded = pad(x, (0, self._num_padding, 0, -num_rows % self.TILE_ROWS))
        tiles = [linear(tile, self.weight, self.bias) for tile in padded.split(self.TILE_ROWS)]
        out = tiles[0] if len(tiles) == 1 else torch.cat(tiles)
        return out[:num_rows]
