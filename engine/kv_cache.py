"""The paged KV cache: one tensor, and the arithmetic of its layout. Knows no request and no owner.

    storage [num_layers, num_blocks, 2 (k, v), num_kv_heads, block_size, head_dim]

One layer of one block is one contiguous range of bytes, the unit of hand-off. Heads are outermost inside
k and v, so that a tensor-parallel rank's share of a block is one contiguous slice of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.errors import ConfigError

KV_DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class KvCacheLayout:
    num_layers: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        return KV_DTYPES[self.dtype]

    @property
    def head_bytes(self) -> int:
        """k or v of one head in one layer of one block."""
        return self.block_size * self.head_dim * self.torch_dtype.itemsize

    @property
    def layer_block_bytes(self) -> int:
        """One layer of one block: the contiguous unit of hand-off."""
        return 2 * self.num_kv_heads * self.head_bytes

    @property
    def block_bytes(self) -> int:
        """One block over all layers."""
        return self.num_layers * self.layer_block_bytes

    def shape(self, num_blocks: int) -> tuple[int, ...]:
        heads = (self.num_kv_heads, self.block_size, self.head_dim)
        return (self.num_layers, num_blocks, 2, *heads)

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
        self.storage = buffer.view(layout.torch_dtype).view(layout.shape(num_blocks))
        self.layers: list[Tensor] = list(self.storage.unbind(0))

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Performs the copies (source, destination) in order, over all layers (copy on write)."""
        for source, destination in copies:
            self.storage[:, destination].copy_(self.storage[:, source])
