"""Which bytes of one pool go where in another. Pure arithmetic: no tensor, no transport, no request.

A rank's pool is flat memory with the shape [num_layers, num_blocks, parts (k, v), rank_kv_heads] of *strips*,
a strip being one head's [block_size, head_dim] values, in int8 and fp8 with their scale before them:

    fp32, fp16, bf16    values
    int8, fp8           scale (fp32, and 4 bytes of zeros), values

One layer of one block is one contiguous range, a *piece*, the unit of transfer. A scale lies in its head's
strip, not beside the other scales: a run of heads with their scales is one range, as it is without scales.

Ranks split the KV heads: with TP up to the number of heads every rank holds a run of them, beyond it a head
is held by several neighbouring ranks. A plan between two pools names, for every pair of ranks, the *slices*
that go from a piece of the one to a piece of the other:

    4 heads, TP 2 -> TP 4           piece of prefill rank 0   k: h0 h1    v: h0 h1
                                    piece of decode rank 0    k: h0       v: h0         two slices
                                    piece of decode rank 1    k: h1       v: h1         two slices

The cache of multi-head latent attention is one head of one part, which every rank holds: [block_size,
latent_dim + rope_dim]. It goes whole to every decode rank, from one prefill rank.

Every byte of every decode rank's piece is in exactly one slice of exactly one prefill rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from baton.errors import ConfigError, IncompatiblePeer

DTYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}
SCALE_BYTES = {"int8": 8, "fp8": 8}  # of a strip; a whole word, so that values keep to words too
_WORD_BYTES = 8  # checksums count in words (kv_transfer.checksum)
_POSITIVE = ("num_layers", "num_blocks", "num_kv_heads", "block_size", "head_dim", "tp_size")
_MUST_AGREE = ("latent_dim", "num_layers", "num_kv_heads", "block_size", "head_dim", "dtype")


@dataclass(frozen=True, slots=True)
class PoolLayout:
    """One rank's pool. `num_kv_heads` are the model's, of which `tp_size` ranks share the holding.

    `latent_dim` 0: every head has k and v. Else the model keeps of each token one latent vector and, behind
    it, the `head_dim - latent_dim` rotated dimensions of its key (multi-head latent attention, DeepSeek-V2,
    arXiv:2405.04434, section 2.1), and `num_kv_heads` is 1.
    """

    num_layers: int
    num_blocks: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    dtype: str
    tp_rank: int = 0
    tp_size: int = 1
    latent_dim: int = 0

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) < 1:
                raise ConfigError(f"must be at least 1, is {getattr(self, name)}", field=name)
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(
                f"is {self.dtype!r}, known are {', '.join(DTYPE_BYTES)}", field="dtype"
            )
        if not 0 <= self.tp_rank < self.tp_size:
            raise ConfigError(f"is {self.tp_rank} of {self.tp_size}", field="tp_rank")
        if self.num_kv_heads % self.tp_size and self.tp_size % self.num_kv_heads:
            raise ConfigError(
                f"{self.tp_size} ranks cannot share {self.num_kv_heads} KV heads evenly",
                field="tp_size",
            )
        if self.latent_dim and self.num_kv_heads > 1:
            raise ConfigError(
                f"is {self.num_kv_heads}: a latent cache has one head", field="num_kv_heads"
            )
        if not 0 <= self.latent_dim <= self.head_dim:
            raise ConfigError(
                f"is {self.latent_dim} of {self.head_dim} dimensions", field="latent_dim"
            )
        if self.head_bytes % _WORD_BYTES:
            raise ConfigError(
                f"{self.block_size} x {self.head_dim} {self.dtype} are {self.head_bytes} bytes per "
                f"head and block, no multiple of {_WORD_BYTES}",
                field="block_size",
            )

    @property
    def heads(self) -> range:
        """The model's KV heads that this rank holds."""
        if self.tp_size <= self.num_kv_heads:
            share = self.num_kv_heads // self.tp_size
            return range(self.tp_rank * share, (self.tp_rank + 1) * share)
        head = self.tp_rank * self.num_kv_heads // self.tp_size
        return range(head, head + 1)

    @property
    def num_parts(self) -> int:
        """2, k and v, or 1, the latent."""
        return 1 if self.latent_dim else 2

    @property
    def head_bytes(self) -> int:
        """One strip: a part of one head in one piece, with its scale where it has one."""
        values = self.block_size * self.head_dim * DTYPE_BYTES[self.dtype]
        return SCALE_BYTES.get(self.dtype, 0) + values

    @property
    def piece_bytes(self) -> int:
        """One layer of one block."""
        return self.num_parts * len(self.heads) * self.head_bytes

    @property
    def piece_words(self) -> int:
        return self.piece_bytes // _WORD_BYTES

    @property
    def block_bytes(self) -> int:
        """One block over all layers."""
        return self.num_layers * self.piece_bytes

    @property
    def size_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    def offset(self, layer: int, block: int) -> int:
        """Where the piece begins in the pool's memory."""
        return (layer * self.num_blocks + block) * self.piece_bytes


@dataclass(frozen=True, slots=True)
class Slice:
    """`size_bytes` at offset `source` go to offset `destination`, of pieces or of whole pools."""

    source: int
    destination: int
    size_bytes: int


def plan(source: PoolLayout, destination: PoolLayout) -> tuple[Slice, ...]:
    """What of every piece this prefill rank sends to this decode rank; empty where they share nothing.

    Raises IncompatiblePeer where no copying of bytes turns one layout into the other.
    """
    for name in _MUST_AGREE:
        ours, theirs = getattr(source, name), getattr(destination, name)
        if ours != theirs:
            raise IncompatiblePeer(f"is {ours} here and {theirs} at the peer", field=name)
    shared = [head for head in destination.heads if _sends(source, destination, head)]
    if not shared:
        return ()
    size_bytes = len(shared) * source.head_bytes
    return tuple(
        _merged(
            Slice(
                (part * len(source.heads) + shared[0] - source.heads.start) * source.head_bytes,
                (part * len(destination.heads) + shared[0] - destination.heads.start)
                * source.head_bytes,
                size_bytes,
            )
            for part in range(source.num_parts)
        )
    )


def _sends(source: PoolLayout, destination: PoolLayout, head: int) -> bool:
    """Whether `source` is the one prefill rank that sends `head` to `destination`. Where several hold
    it, the decode ranks take turns among them."""
    num_holders = max(1, source.tp_size // source.num_kv_heads)
    return head in source.heads and (source.tp_rank - destination.tp_rank) % num_holders == 0


def _merged(slices: Iterable[Slice]) -> Iterator[Slice]:
    """Slices that are adjacent on both sides made one; order and bytes stay the same."""
    last: Slice | None = None
    for item in slices:
        if last is None:
            last = item
        elif (item.source, item.destination) == (
            last.source + last.size_bytes,
            last.destination + last.size_bytes,
        ):
            last = Slice(last.source, last.destination, last.size_bytes + item.size_bytes)
        else:
            yield last
            last = item
    if last is not None:
        yield last
