"""Where in a transfer somebody may die: after a count of bytes, not of seconds.

A payload is written portion by portion, each by one of two prefill ranks, whose heads are half a piece:

    layer 0, block 0, rank 0 | layer 0, block 0, rank 1 | layer 0, block 1, rank 0 | ...
    [-------------------- a piece ---------------------]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from kv_transfer.base import Link, TransferId, Write
from kv_transfer.pool import Pool
from tests.transfer.hooked import Hook, Moment, hook_into
from tests.transfer.worlds import BIG, make_sender, random_pool

LAYOUT = replace(BIG, num_blocks=8)
TRANSFER = TransferId("at a point", 0)
BLOCKS = (3, 5)  # of both pools
NUM_RANKS = 2
NUM_PORTIONS = LAYOUT.num_layers * len(BLOCKS) * NUM_RANKS


@dataclass(frozen=True, slots=True)
class Point:
    """`portion` counts from 0; of those before it every byte has landed."""

    portion: int
    moment: Moment

    @property
    def num_landed(self) -> int:
        return self.portion + (self.moment is Moment.LANDED)


POINTS = {
    "before the first byte": Point(0, Moment.BEFORE),
    "the first bytes under way": Point(0, Moment.UNDER_WAY),
    "inside the first piece": Point(0, Moment.LANDED),
    "at a piece's end": Point(1, Moment.LANDED),
    "inside a later layer": Point(8, Moment.LANDED),
    "inside the last piece": Point(NUM_PORTIONS - 2, Moment.LANDED),
    "the last bytes under way": Point(NUM_PORTIONS - 1, Moment.UNDER_WAY),
    "after the last byte, before anybody is told": Point(NUM_PORTIONS - 1, Moment.LANDED),
}


class At:
    """A hook that acts once, at a point. The portions are written one after another."""

    def __init__(self, point: Point, act: Callable[[], None]) -> None:
        self._point = point
        self._act = act
        self._num_begun = 0

    def __call__(self, moment: Moment, transfer: TransferId) -> None:
        if (self._num_begun, moment) == (self._point.portion, self._point.moment):
            self._act()
        self._num_begun += moment is Moment.LANDED


class Writers:
    """The two prefill ranks of one process, and their links to the pool that made `offer`."""

    def __init__(self, kind: str, offer: bytes, hook: Hook | None = None) -> None:
        self.pool = random_pool(LAYOUT)
        self._links: list[Link] = []
        for rank in range(NUM_RANKS):
            link = make_sender(kind, half(self.pool, rank)).connect(offer)
            if hook is not None:
                hook_into(link, hook)
            self._links.append(link)

    def open(self) -> None:
        for link in self._links:
            link.open(TRANSFER, BLOCKS)

    def write(self) -> list[int]:
        """The whole payload; the checksum of each block. Raises what ends it."""
        sums = [0] * len(BLOCKS)
        for layer, index, rank in portions():
            block = [BLOCKS[index]]
            written = self._links[rank].write(TRANSFER, Write(layer, block, block))
            sums[index] += written.result(timeout=30).checksums[0]
        return [each % (1 << 64) for each in sums]

    def fence(self) -> None:
        for link in self._links:
            link.fence(TRANSFER)

    def close(self) -> None:
        for link in self._links:
            link.close()


def portions() -> Iterator[tuple[int, int, int]]:
    """(layer, index in BLOCKS, rank) in the order of their writing."""
    for layer in range(LAYOUT.num_layers):
        for index in range(len(BLOCKS)):
            for rank in range(NUM_RANKS):
                yield layer, index, rank


def half(whole: Pool, rank: int) -> Pool:
    """What one of the two ranks holds of `whole`."""
    layout = replace(whole.layout, tp_size=NUM_RANKS, tp_rank=rank)
    heads = slice(layout.heads.start, layout.heads.stop)
    return Pool(layout, by_heads(whole)[:, :, :, heads].reshape(-1))


def num_landed(target: Pool, source: Pool) -> int:
    """How many leading portions lie in `target` whole."""
    found, wanted = by_heads(target), by_heads(source)
    heads = LAYOUT.num_kv_heads // NUM_RANKS
    for number, (layer, index, rank) in enumerate(portions()):
        part = slice(rank * heads, (rank + 1) * heads)
        block = BLOCKS[index]
        if not found[layer, block, :, part].equal(wanted[layer, block, :, part]):
            return number
    return NUM_PORTIONS


def by_heads(pool: Pool) -> Tensor:
    """[num_layers, num_blocks, parts, heads of the rank, head_bytes]"""
    layout = pool.layout
    shape = (layout.num_layers, layout.num_blocks, 2, len(layout.heads), layout.head_bytes)
    return pool.memory.view(shape)
