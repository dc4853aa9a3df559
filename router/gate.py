"""The door: requests wait here until the workers have room for them, or are refused.

The decisions are `router.admission`'s; this is their waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from baton.errors import BatonError, DeadlineExceeded
from router.admission import Admission, Ticket


class Gate:
    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def place(self, priority: int, timeout_s: float | None) -> AsyncIterator[None]:
        """Holds a place among those in flight. Raises Overloaded at once where the queue is full, or
        later when someone more urgent takes the place; DeadlineExceeded where the wait is too long."""
        await self._wait(priority, timeout_s)
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.admission.finish(time.monotonic() - started_s)
            self._advance()

    def resize(self, max_in_flight: int) -> None:
        """The number of workers changed."""
        self.admission.max_in_flight = max_in_flight
        self._advance()

    async def _wait(self, priority: int, timeout_s: float | None) -> None:
        ticket, displaced = self.admission.enter(priority)
        if displaced is not None:
            self._refuse(displaced, self.admission.refusal())
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = admitted
        self._advance()
        try:
            # Shielded: a request that is cancelled in the instant of its admission was admitted, and
            # gives its place back below.
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(admitted)
        except BaseException as error:
            if self._waiting.pop(ticket, None) is not None:
                self.admission.leave(ticket)
            elif admitted.done() and not admitted.cancelled() and admitted.exception() is None:
                self.admission.finish(0.0)  # admitted in the same instant as given up
                self._advance()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed in the queue") from None
            raise

    def _advance(self) -> None:
        while (ticket := self.admission.next()) is not None:
            self._waiting.pop(ticket).set_result(None)

    def _refuse(self, ticket: Ticket, error: BatonError) -> None:
        self._waiting.pop(ticket).set_exception(error)
