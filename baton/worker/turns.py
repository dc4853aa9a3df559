"""Which requests the coming step computes, told to whoever asked for them whenever that changes. Pure.

Where a worker dies, those who asked know by it which requests may have been the cause. While the same
samples are computed step after step nothing is said, and one comparison of lists is all it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Generic, TypeVar

from baton.scheduling.sample import Sample

Key = TypeVar("Key")


class Turns(Generic[Key]):
    def __init__(self) -> None:
        self._planned: Sequence[Sample] = ()
        self._computing: set[Key] = set()
        self._new: list[Key] = []

    def begin(self, key: Key) -> None:
        """A request of which nothing has been told."""
        self._new.append(key)

    def changes(
        self,
        planned: Sequence[Sample],
        key_of: Callable[[Sample], Key],
        requests: Container[Key],
    ) -> tuple[Sequence[Key], Sequence[Key]]:
        """What is to be told before a step that computes `planned`: the requests that it computes and
        the one before did not, and those of `requests` that it does not compute (any more, or yet)."""
        if not self._new and planned == self._planned:
            return (), ()
        self._planned = planned
        now = {key_of(sample) for sample in planned}
        before, self._computing = self._computing, now
        new, self._new = self._new, []
        waiting = dict.fromkeys((*new, *(before - now)))
        return list(now - before), [key for key in waiting if key in requests and key not in now]
