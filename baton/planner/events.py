"""Simulated time: what is to happen, in order. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Events:
    """Events of one instant happen in the order in which they were asked for."""

    now_s: float = 0.0
    _heap: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _next_number: int = 0

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """`time_s` is not in the past."""
        heapq.heappush(self._heap, (time_s, self._next_number, action))
        self._next_number += 1

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._heap:
            self.now_s, _, action = heapq.heappop(self._heap)
            action()
