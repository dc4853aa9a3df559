"""Reads a checkpoint's tensors in the form in which the decoder computes with them: converted, fused and
packed, one at a time. Knows no family: names are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine.linears import Linear
from baton.engine.row_ops import RowOps
from baton.engine.weights import WeightSource
from baton.errors import ConfigError

Progress = Callable[[int, int], None]  # (bytes done, bytes in total)
_FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Numerics:
    """How the decoder computes: `dtype` is that of the activations and of what `make_linear` is given.
    `packs`: it copies its weight. `stored_fp16`: weights end as fp16."""

    device: torch.device
    dtype: torch.dtype
    packs: bool
    stored_fp16: bool
    make_linear: Callable[[Tensor, Tensor | None], Linear]
    ops: RowOps


class WeightLoader:
    """`shapes`: what is expected of each tensor that `source` holds. Every tensor is read once."""

    def __init__(
        self,
        source: WeightSource,
        shapes: Mapping[str, tuple[int, ...]],
        numerics: Numerics,
        progress: Progress | None = None,
    ) -> None:
        self.numerics = numerics
        self._source = source
        self._shapes = shapes
        self._progress = progress
        self._scratch = torch.empty(0)
        self._done_bytes = 0

    def embeddings(self, name: str) -> Tensor:
        """[vocab_size, hidden_size], in the dtype in which weights are stored."""
        stored = torch.float16 if self.numerics.stored_fp16 else self.numerics.dtype
        return self._read([name], torch.empty, stored)

    def linear(self, names: Sequence[str], *, bias: bool = False) -> Linear:
        """One linear whose outputs are those of `names`, one after the other."""
        dtype = self.numerics.dtype
        make = self._scratch_tensor if self.numerics.packs else torch.empty
        weight = self._read([f"{name}.weight" for name in names], make, dtype)
        biases = self.tensor([f"{name}.bias" for name in names]) if bias else None
        return self.numerics.make_linear(weight, biases)

    def tensor(self, names: Sequence[str]) -> Tensor:
        """The tensors `names` stacked along their first dimension, in the activations' dtype."""
        return self._read(names, torch.empty, self.numerics.dtype)

    def _read(
        self, names: Sequence[str], make: Callable[..., Tensor], dtype: torch.dtype
    ) -> Tensor:
        shapes = [self._shapes[name] for name in names]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        out = make(shape, dtype=dtype, device=self.numerics.device)
        parts = out.split([shape[0] for shape in shapes])
        for name, part in zip(names, parts, strict=True):
            self._copy(name, part)
        return out

    def _scratch_tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Memory that is valid until the next call. One buffer for all that is packed: buffers freed
        between packs would leave holes in the heap, and peak memory well above the packed weights."""
        count = math.prod(shape)
        if self._scratch.numel() < count:
            self._scratch = torch.empty(0)  # the old one goes first
            self._scratch = torch.empty(count, dtype=dtype, device=device)
        return self._scratch[:count].view(shape)

    def _copy(self, name: str, out: Tensor) -> None:
        tensor = self._source.read(name)
        if self.numerics.stored_fp16:
            low, high = tensor.aminmax()
            if not max(-low.item(), high.item()) <= _FP16_MAX:  # also false for NaN
                raise ConfigError(
                    f"has values from {low.item():g} to {high.item():g}, beyond fp16's range; "
                    "load it with dtype fp32",
                    field=name,
                )
        out.copy_(tensor)
        self._done_bytes += tensor.nbytes
        if self._progress is not None:
            self._progress(self._done_bytes, self._source.total_bytes)
