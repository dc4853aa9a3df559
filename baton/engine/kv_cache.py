"""The paged KV cache: one buffer, and the arithmetic of its layout. Knows no request and no owner.

    [num_layers, num_blocks, 2 (k, v), num_kv_heads] strips of     [block_size, head_dim] values
                                               in int8 and fp8     scale, [block_size, head_dim] values

One layer of one block is one contiguous range of bytes, the unit of hand-off. Heads are outermost inside
k and v, and each has its scale in its strip, so that a tensor-parallel rank's share of a block is one
contiguous slice of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine import quantized_kv
from baton.errors import ConfigError

KV_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
QUANTIZED = ("int8", "fp8")


@dataclass(frozen=True, slots=True)
class KvCacheLayout:
    num_layers: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        if self.is_quantized and self.block_size * self.head_dim % quantized_kv.SCALE_BYTES:
            raise ConfigError(
                f"{self.block_size} x {self.head_dim} {self.dtype} are no whole number of "
                f"{quantized_kv.SCALE_BYTES} bytes, to which scales are aligned",
                field="block_size",
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        return KV_DTYPES[self.dtype]

    @property
    def is_quantized(self) -> bool:
        return self.dtype in QUANTIZED

    @property
    def head_bytes(self) -> int:
        """One strip: k or v of one head in one layer of one block."""
        scale_bytes = quantized_kv.SCALE_BYTES if self.is_quantized else 0
        return scale_bytes + self.block_size * self.head_dim * self.torch_dtype.itemsize

    @property
    def layer_block_bytes(self) -> int:
        """One layer of one block: the contiguous unit of hand-off."""
        return 2 * self.num_kv_heads * self.head_bytes

    @property
    def block_bytes(self) -> int:
        """One block over all layers."""
        return self.num_layers * self.layer_block_bytes

    def size_bytes(self, num_blocks: int) -> int:
        return num_blocks * self.block_bytes

    def num_blocks_in(self, size_bytes: int) -> int:
        """How many blocks `size_bytes` hold; ConfigError if none."""
        num_blocks = size_bytes // self.block_bytes
        if num_blocks < 1:
            raise ConfigError(
                f"{size_bytes} bytes hold no KV block; one takes {self.block_bytes}",
                field="kv_cache_bytes",
            )
        return num_blocks


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's views into the buffer. `values` [num_blocks, 2, num_kv_heads, block_size, head_dim];
    `scales` fp32 [num_blocks, 2, num_kv_heads] where values are of one byte."""

    values: Tensor
    scales: Tensor | None = None

    @property
    def block_size(self) -> int:
        return self.values.shape[3]

    @property
    def num_kv_heads(self) -> int:
        return self.values.shape[2]

    def read(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """`blocks`, of any shape, as floats [*blocks.shape, 2, num_kv_heads, block_size, head_dim]."""
        if self.scales is None:
            return self.values[blocks].to(dtype)
        q = self.values.view(torch.uint8)[blocks].view(self.values.dtype)  # CUDA indexes no fp8
        return quantized_kv.restored(q, self.scales[blocks]).to(dtype)

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Puts row i of k and v [num_tokens, num_kv_heads, head_dim] at slots[i]: block * block_size +
        offset (int64). In a quantized cache the tokens of one block ascend, and one at offset 0 begins
        its block anew."""
        if self.scales is not None:
            kv = torch.stack((k, v), 1).to(torch.float32)
            quantized_kv.write(self.values, self.scales, slots, kv)
            return
        blocks, offsets = slots // self.block_size, slots % self.block_size
        self.values[blocks, 0, :, offsets] = k.to(self.values.dtype)
        self.values[blocks, 1, :, offsets] = v.to(self.values.dtype)


class KvCache:
    """`num_blocks` blocks over `buffer` (uint8, of exactly the layout's size), or over fresh memory.

    Fresh memory is zero: a masked position must hold a number, since 0 x NaN is NaN.
    """

    def __init__(
        self,
        layout: KvCacheLayout,
        num_blocks: int,
        device: torch.device | str = "cpu",
        buffer: Tensor | None = None,
    ) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        if buffer is None:
            try:
                buffer = torch.zeros(
                    layout.size_bytes(num_blocks), dtype=torch.uint8, device=device
                )
            except (RuntimeError, torch.OutOfMemoryError) as error:
                raise ConfigError(
                    f"cannot allocate {layout.size_bytes(num_blocks)} bytes of KV cache: {error}",
                    field="kv_cache_bytes",
                ) from error
        elif buffer.dtype != torch.uint8 or buffer.numel() != layout.size_bytes(num_blocks):
            raise ConfigError(
                f"the KV buffer must be {layout.size_bytes(num_blocks)} bytes for {num_blocks} "
                f"blocks, found {buffer.numel()} of {buffer.dtype}",
                field="num_blocks",
            )
        self.buffer = buffer
        self._blocks = buffer.view(layout.num_layers, num_blocks, layout.layer_block_bytes)
        self.layers = [_layer(layout, blocks) for blocks in self._blocks.unbind(0)]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Performs the copies (source, destination) in order, over all layers (copy on write)."""
        for source, destination in copies:
            self._blocks[:, destination].copy_(self._blocks[:, source])


def _layer(layout: KvCacheLayout, blocks: Tensor) -> LayerCache:
    """The views of one layer of all blocks, uint8 [num_blocks, layer_block_bytes]."""
    strips = blocks.view(len(blocks), 2, layout.num_kv_heads, layout.head_bytes)
    shape = (layout.block_size, layout.head_dim)
    if not layout.is_quantized:
        return LayerCache(strips.view(layout.torch_dtype).unflatten(-1, shape))
    values = strips[..., quantized_kv.SCALE_BYTES :].view(layout.torch_dtype)
    return LayerCache(values.unflatten(-1, shape), strips[..., :4].view(torch.float32).squeeze(-1))
