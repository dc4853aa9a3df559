"""Keys and values in one byte each, with one scale per block, head and part (k or v). Torch, any device.

A block fills up token by token, and its scale must fit them all. So it is a power of two: when a token
brings a larger value than the scale can hold, the scale becomes larger by some factor 2^shift, and
what the block holds already is divided by it. The roundings nest, which makes that exact:

    int8   floor(x / scale), read as (q + 1/2) * scale       floor(floor(x) / 2^n) = floor(x / 2^n)
    fp8    x / scale to four significant bits (e4m3),        to the same bits at any scale
           to nearest even, 0 where that is below 2^-6

INVARIANT: a block's bytes are a function of the floats that were written into it, whatever the chunks in
which they came, and of nothing that it held before its first token was written.

The same as kernels/write_kv.c and kernels/quantized.h, bit for bit, for numbers; where a value is none, or
2^126 and more, the scale is NaN, and with it all that is read from the block. Knows no block table.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = (
    8  # before each strip's values: an fp32, and zeros that keep what follows to whole words
)

_BINADES = {torch.int8: 6, torch.float8_e4m3fn: 7}  # of values from the scale on that fit
_NOT_FINITE = 255  # the exponent field of an infinity or NaN
_LEAST, _MOST = (
    32,
    252,
)  # exponent fields of what a scale is made for: so that all quotients are numbers
_FP8_LEAST = 31 / 2048  # rounds to 2^-6, the least normal number of e4m3


def scale_exponents(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The exponent field (int32) of the least scale with which each value of `x` (fp32) fits."""
    exponents = (x.view(torch.int32) >> 23) & 0xFF
    fitting = exponents.clamp(min=_LEAST) - _BINADES[dtype]
    return fitting.masked_fill(exponents > _MOST, _NOT_FINITE)


def exponents_of(scales: Tensor) -> Tensor:
    return scales.view(torch.int32) >> 23 & 0xFF


def scales_of(exponents: Tensor) -> Tensor:
    """fp32, NaN where the exponent is that of no number."""
    scales = (exponents << 23).view(torch.float32)
    return scales.masked_fill(exponents == _NOT_FINITE, torch.nan)


def quantized(steps: Tensor, dtype: torch.dtype) -> Tensor:
    """`steps`: fp32 values over their scales."""
    if dtype == torch.int8:
        return steps.floor().to(torch.int8)
    return steps.masked_fill(steps.abs() < _FP8_LEAST, 0).to(dtype)


def shifted(q: Tensor, shift: Tensor) -> Tensor:
    """The same values for a scale 2^shift times as large; `shift` int32, not negative."""
    if q.dtype == torch.int8:
        return q >> shift.clamp(max=7).to(torch.int8)
    bits = q.view(torch.uint8).to(torch.int32)
    lower = bits - (shift << 3)
    return torch.where(((bits & 0x7F) >> 3) > shift, lower, 0).to(torch.uint8).view(q.dtype)


def restored(q: Tensor, scales: Tensor) -> Tensor:
    """fp32; `scales` is without the last two dimensions (tokens, head_dim) of `q`."""
    x = q.to(torch.float32)
    if q.dtype == torch.int8:
        x += 0.5
    return x.mul_(scales[..., None, None])


def write(values: Tensor, scales: Tensor, slots: Tensor, kv: Tensor) -> None:
    """Puts `kv` fp32 [num_tokens, 2, num_kv_heads, head_dim] at `slots` int64 [num_tokens] of a layer.

    `values` [num_blocks, 2, num_kv_heads, block_size, head_dim], `scales` [num_blocks, 2, num_kv_heads].
    A token at the first place of a block begins it anew. Tokens of one block ascend.
    """
    block_size = values.shape[3]
    blocks, place = torch.unique(slots // block_size, return_inverse=True)
    offsets = slots % block_size
    first = offsets.new_full((len(blocks),), block_size)
    first.scatter_reduce_(0, place, offsets, "amin")

    needed = scale_exponents(kv, values.dtype).amax(-1)
    index = place[:, None, None].expand_as(needed)
    held = exponents_of(scales[blocks]).masked_fill((first == 0)[:, None, None], 0)
    fitting = held.scatter_reduce(0, index, needed, "amax")
    _make_fit(values, blocks, fitting - held, held > 0)
    scales[blocks] = scales_of(fitting)

    steps = kv / scales_of(fitting)[place].unsqueeze(-1)
    raw = values.view(torch.uint8)  # CUDA indexes no fp8
    raw[blocks[place], :, :, offsets] = quantized(steps, values.dtype).view(torch.uint8)


def _make_fit(values: Tensor, blocks: Tensor, shift: Tensor, holds: Tensor) -> None:
    """Divides what `blocks` hold by 2^shift, both [num_blocks, 2, num_kv_heads], where they hold anything."""
    moves = ((shift > 0) & holds).flatten(1).any(1)
    if not moves.any():
        return
    blocks, shift = blocks[moves], shift[moves]
    raw = values.view(torch.uint8)
    fitted = shifted(raw[blocks].view(values.dtype), shift[..., None, None])
    raw[blocks] = fitted.view(torch.uint8)
