"""The one order in which samples get blocks of a pool, whatever they want them for. Pure.

    wishes, most urgent first    [ takes | waits for its turn | takes | takes | ... ]
    blocks                         taken   kept for it          taken   too few: nobody behind passes

A wish is granted at once (somebody else is to write the KV) or when its sample's turn to compute comes. Until
then as many blocks as it needs are left for it by those behind, so that it never waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from baton.scheduling import sample_blocks
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.sample import Sample


class Wish(NamedTuple):
    """`at_once`: its blocks are taken as soon as there are any, not when its turn comes."""

    sample: Sample
    at_once: bool


def grant(
    wishes: Sequence[Wish],
    blocks: BlockManager,
    num_spare: Callable[[], int] = lambda: 0,
    num_places: int | None = None,
) -> list[Sample]:
    """Takes blocks for those of `wishes`, most urgent first, who want them at once, and says for whom.
    Whoever cannot have them holds back all behind. `num_spare` blocks stay available beside; there are
    places for `num_places` samples."""
    granted: list[Sample] = []
    num_kept = 0
    last = max((index for index, wish in enumerate(wishes) if wish.at_once), default=-1)
    for sample, at_once in wishes[: last + 1][:num_places]:
        if at_once:
            if not sample_blocks.take(sample, blocks, num_spare() + num_kept):
                break
            granted.append(sample)
        else:
            num_kept += sample_blocks.num_wanted(sample, blocks)
            if num_kept + num_spare() > blocks.num_available:
                break
    return granted


def urgency(sample: Sample) -> tuple[float, float, int]:
    """Of those who decode: priority first, then arrival."""
    return (-sample.priority, sample.arrival_s, sample.handle)


def insert(queue: list[Sample], sample: Sample) -> None:
    """Keeps `queue` ordered by `urgency`. Newcomers are mostly last."""
    index = len(queue)
    while index and urgency(sample) < urgency(queue[index - 1]):
        index -= 1
    queue.insert(index, sample)
