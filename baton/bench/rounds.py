"""How often a benchmark repeats itself in the time it has, and how it tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

# What has just ended, how many steps are done, and of how many.
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class RoundLimits:
    """`most` rounds, fewer where they would take longer than until `until_s` on `clock`, but `least`
    whatever the time."""

    least: int
    most: int
    until_s: float
    clock: Callable[[], float] = time.monotonic


def rounds(limits: RoundLimits) -> Iterator[int]:
    """Goes on while there is time for one more round as long as the longest."""
    longest_s = 0.0
    for index in range(limits.most):
        begin_s = limits.clock()
        if index >= limits.least and begin_s + longest_s > limits.until_s:
            return
        yield index
        longest_s = max(longest_s, limits.clock() - begin_s)


@dataclass(slots=True)
class Steps:
    """Counts a run's steps. `total` is what it plans: time may be up before."""

    total: int
    on_step: OnStep
    done: int = field(default=0)

    def end(self, what: str) -> None:
        self.done += 1
        self.on_step(what, self.done, self.total)
