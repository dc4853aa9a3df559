"""Notices that the engine hangs: work waits, and no step completes. Health means progress."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from baton.config import Times

log = logging.getLogger(__name__)


class StepClock(Protocol):
    """What is seen of a step loop: when the step in progress began (monotonic), the longest so far."""

    step_started_s: float | None
    longest_step_s: float


def is_hung(steps: StepClock, times: Times) -> bool:
    """Whether the step in progress takes longer than any ever should."""
    started_s = steps.step_started_s
    limit_s = times.watchdog_after(steps.longest_step_s)
    return started_s is not None and time.monotonic() - started_s > limit_s


async def watch(
    steps: StepClock, times: Times, set_serving: Callable[[bool], Awaitable[None]]
) -> None:
    """Turns health off while a step takes longer than it ever should, and on again when it ends."""
    hung = False
    while True:
        await asyncio.sleep(times.watchdog_s / 10)
        if is_hung(steps, times) != hung:
            hung = not hung
            log.error("a step does not end") if hung else log.info("steps go on")
            await set_serving(not hung)
