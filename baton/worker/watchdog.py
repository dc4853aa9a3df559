"""Notices that a worker makes no progress: its engine, or its event loop. Health means progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from baton.config import Times

log = logging.getLogger(__name__)

_LOOKS_PER_LIMIT = 10


class EngineClock(Protocol):
    """What is seen of a step loop: since when it is busy with one thing (monotonic), and its longest step
    so far."""

    busy_since_s: float | None
    longest_step_s: float


class Watchdog:
    """`watch` runs on the event loop that it watches, beside the engine; `is_hung` is asked on any thread,
    so that the thread that reports to routers can say it when neither of them can."""

    def __init__(
        self, engine: EngineClock, times: Times, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._times = times
        self._clock = clock
        self._seen_s: float | None = None  # when the event loop last ran

    def is_hung(self) -> bool:
        """Whether either takes longer over one thing than it ever should."""
        oldest_s = self._clock() - self._times.watchdog_after(self._engine.longest_step_s)
        return any(
            since_s is not None and since_s < oldest_s
            for since_s in (self._engine.busy_since_s, self._seen_s)
        )

    async def watch(self, set_well: Callable[[bool], Awaitable[None]]) -> None:
        """Turns health off while the engine hangs, and on again when it goes on."""
        hung = False
        while True:
            self._seen_s = self._clock()
            if self.is_hung() != hung:
                hung = not hung
                log.error("a step does not end") if hung else log.info("steps go on")
                await set_well(not hung)
            await asyncio.sleep(self._times.watchdog_s / _LOOKS_PER_LIMIT)
