"""Sends planned requests to a target and notes when their tokens arrive. Knows no protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

from baton.bench.outcome import Arrival, Outcome
from baton.bench.target import Target
from baton.bench.workload import PlannedRequest
from baton.errors import BatonError, DeadlineExceeded
from baton.types import Usage


async def run(
    target: Target,
    requests: Sequence[PlannedRequest],
    *,
    concurrency: int | None,
    timeout_s: float | None = None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Every request is sent when it is due, at most `concurrency` at a time (None: no limit).

    A request without a due time starts when there is room for it, and its times count from then;
    one with a due time that finds no room has been waiting since it was due.
    """
    room = asyncio.Semaphore(concurrency or len(requests) or 1)
    start_s = time.perf_counter()

    async def send(request: PlannedRequest, due_s: float | None) -> Outcome:
        try:
            outcome = await _measure(target, request, due_s, timeout_s)
        finally:
            room.release()
        on_end(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = []
        for request in requests:
            due_s = None if request.due_s is None else start_s + request.due_s
            if due_s is not None:
                await asyncio.sleep(due_s - time.perf_counter())
            await room.acquire()
            tasks.append(group.create_task(send(request, due_s)))
    return [task.result() for task in tasks]


async def _measure(
    target: Target, request: PlannedRequest, due_s: float | None, timeout_s: float | None
) -> Outcome:
    start_s = time.perf_counter() if due_s is None else due_s
    arrivals: list[Arrival] = []
    usage: Usage | None = None
    error: BatonError | None = None
    try:
        async with asyncio.timeout(timeout_s), aclosing(target.stream(request)) as events:
            async for event in events:
                if isinstance(event, Usage):
                    usage = event
                else:
                    arrivals.append(Arrival(time.perf_counter(), event))
    except TimeoutError:
        error = DeadlineExceeded(f"not finished within {timeout_s:g} s")
    except BatonError as raised:
        error = raised
    return Outcome(start_s, time.perf_counter(), tuple(arrivals), usage, error)
