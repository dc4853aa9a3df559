"""Weights without a checkpoint: each element a function of (tensor name, element index).

So any rank of any tensor-parallel size makes its own slice, and all workers agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor

_CHUNK = 1 << 16  # elements: the passes over a chunk stay in a core's cache


class DummyWeights:
    """Uniform, with the spread of the usual initialisation: 1 / sqrt(fan-in) for matrices."""

    def __init__(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        self._expected = dict(expected)
        self.total_bytes = sum(4 * math.prod(shape) for shape in expected.values())
        description = repr(sorted(self._expected.items())).encode()
        self.identity = blake2b(b"dummy" + description, digest_size=16).hexdigest()

    def read(self, name: str) -> Tensor:
        shape = self._expected[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        return elements(name, shape[-1], 0, math.prod(shape)).view(shape)


def elements(name: str, fan_in: int, start: int, count: int) -> Tensor:
    """Elements [start, start + count) of the flattened tensor `name`, fp32."""
    key = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "little", signed=True)
    scale = (
        math.sqrt(3 / fan_in) / 2**31
    )  # a uniform value in [-a, a] has the deviation a / sqrt(3)
    out = torch.empty(count, dtype=torch.float32)
    lanes = torch.arange(min(count, _CHUNK), dtype=torch.int32)
    for begin in range(0, count, _CHUNK):
        end = min(begin + _CHUNK, count)
        index = (start + begin + 2**31) % 2**32 - 2**31  # wraps as int32 does
        mixed = _mix((lanes[: end - begin] + index) ^ key)
        torch.mul(mixed, scale, out=out[begin:end])
    return out


def _mix(x: Tensor) -> Tensor:
    """A bijection of int32 (xor-shifts and odd multiplications, wrapping), in place."""
    for shift, factor in ((16, 0x7FEB352D), (15, -0x7B935975), (16, 1)):
        # torch shifts the sign in; the mask makes the shift a logical one.
        x ^= (x >> shift) & (2 ** (32 - shift) - 1)
        if factor != 1:
            x *= factor
    return x
