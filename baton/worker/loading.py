"""How far a model is loaded, as lines of a log: for a worker that has no terminal of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_EVERY_S = 2.0


class LoggedProgress:
    """Called for every tensor; a line now and then, and none where all is loaded before the first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_s = clock()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        now_s = self._clock()
        if now_s - self._said_s >= _EVERY_S:
            self._said_s = now_s
            percent = 100 * done_bytes // max(1, total_bytes)
            log.info("loaded %d %% of %.1f GB", percent, total_bytes / 1e9)
