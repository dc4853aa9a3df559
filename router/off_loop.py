"""Work that would hold up the event loop, on a few threads: parsing, rendering, tokenizing, hashing.

    run ── short: at once ── long: waits its turn, tenants and classes in turn ── a thread ──> what it gave
                              └── too much waits: Overloaded

What waits is bounded by its size, and while one tenant's texts wait, another's goes next. Python code on
these threads shares the interpreter with the loop; what takes long there must not be one long call in C
that keeps it (see `router.http.json_body`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from typing import Any, TypeVar

from baton.errors import Overloaded
from router.admission.admission import AdmissionSettings
from router.admission.fair_queue import Ticket

Given = TypeVar("Given")

SHORT = 2_000  # in characters of text to tokenize: less than a millisecond
_NUM_THREADS = 4
_MAX_WAITING = 64 << 20
_CHARS_PER_S = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    size: int
    answer: asyncio.Future[Any]


class OffLoop:
    """Made anywhere, used on one event loop. `settings`: what classes and tenants weigh."""

    def __init__(
        self,
        settings: AdmissionSettings | None = None,
        *,
        num_threads: int = _NUM_THREADS,
        max_waiting: int = _MAX_WAITING,
    ) -> None:
        settings = settings or AdmissionSettings()
        self._class_of = settings.class_of
        self._queue = settings.fair_queue()
        self._threads = ThreadPoolExecutor(num_threads, "off-loop")
        self._num_idle = num_threads
        self._max_waiting = max_waiting
        self._num_waiting_chars = 0
        self._jobs: dict[Ticket, _Job] = {}  # that wait
        self._numbers = count()

    async def run(
        self, work: Callable[[], Given], size: int, *, tenant: str = "", priority: int = 0
    ) -> Given:
        """What `work` gives or raises. `size`: how long it takes, as characters of text to tokenize. Given
        up while it waits, it is never begun; later, it ends on its thread and nobody hears of it."""
        if size < SHORT:
            return work()
        if self._jobs and self._num_waiting_chars + size > self._max_waiting:
            raise Overloaded("too much text waits to be tokenized", retry_after_s=1.0)
        ticket = Ticket(
            inf, next(self._numbers), self._class_of(priority), tenant, size / _CHARS_PER_S
        )
        answer: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        self._jobs[ticket] = _Job(work, size, answer)
        self._num_waiting_chars += size
        self._queue.add(ticket)
        self._begin()
        try:
            return await answer
        finally:
            if ticket in self._jobs:
                self._queue.remove(ticket)
                self._take(ticket)

    def close(self) -> None:
        """What has begun ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self._num_idle and self._queue:
            job = self._take(self._queue.pop())
            self._num_idle -= 1
            running = asyncio.get_running_loop().run_in_executor(self._threads, job.work)
            running.add_done_callback(partial(self._end, job))

    def _take(self, ticket: Ticket) -> _Job:
        job = self._jobs.pop(ticket)
        self._num_waiting_chars -= job.size
        return job

    def _end(self, job: _Job, ended: asyncio.Future[Any]) -> None:
        self._num_idle += 1
        self._begin()
        if job.answer.done() or ended.cancelled():
            job.answer.cancel()  # nobody waits for it any more, or it will not be done
        elif error := ended.exception():
            job.answer.set_exception(error)
        else:
            job.answer.set_result(ended.result())
