"""What prompts of a model have been like lately. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

_KEPT = 0.999  # of what is remembered, by every prompt: about the last thousand count


@dataclass(slots=True)
class Workload:
    """`long_s`: what a prompt takes to which a second of work, picked at random, belongs. Half of all work is
    in prompts about as long or longer, while most prompts are far shorter: the ones that wait long."""

    long_s: float = inf  # until something is known
    _work_s: float = 0.0
    _squares_s: float = 0.0

    def note(self, work_s: float) -> None:
        """A prompt of `work_s` is to be computed."""
        self._work_s = _KEPT * self._work_s + work_s
        self._squares_s = _KEPT * self._squares_s + work_s * work_s
        if self._work_s:
            self.long_s = self._squares_s / self._work_s
