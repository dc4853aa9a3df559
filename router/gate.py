"""The door: requests wait here until the workers of their model have room for them, or are refused.

The decisions are `router.admission`'s and `router.admission.quotas`'; this is their waiting and their clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain

from baton.errors import DeadlineExceeded
from baton.state.base import Crowd
from router.admission.admission import Admission, AdmissionSettings, Ask
from router.admission.capacity import Capacity
from router.admission.fair_queue import Ticket
from router.admission.quotas import Quotas


class Place:
    """A request's place among those in flight."""

    def __init__(self, door: Door, ticket: Ticket) -> None:
        self._door = door
        self._ticket = ticket

    def computed(self) -> None:
        """Its prompt is computed; what waits for that may come in. May be said again."""
        self._door.admission.computed(self._ticket)
        self._door.settle()


class Door:
    """One model's: each has workers of its own, so none waits for another's."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def place(self, ask: Ask) -> AsyncIterator[Place]:
        """Holds a place among those in flight. Raises Overloaded at once where there is none to be had in
        time, or later when the queue is too long and others come first; DeadlineExceeded when the
        deadline passes in it."""
        ticket = await self._wait(ask)
        started_s = time.monotonic()
        try:
            yield Place(self, ticket)
        finally:
            self.admission.finish(ticket, time.monotonic() - started_s)
            self.settle()

    def settle(self) -> None:
        started, refused = self.admission.settle(time.monotonic())
        for ticket in started:
            self._waiting.pop(ticket).set_result(None)
        for ticket, error in refused:
            self._waiting.pop(ticket).set_exception(error)

    async def _wait(self, ask: Ask) -> Ticket:
        ticket = self.admission.enter(ask, time.monotonic())
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = admitted
        self.settle()
        if admitted.done():
            admitted.result()
            return ticket
        left_s = ask.deadline_s - time.monotonic()
        try:
            # Shielded: a request that is cancelled in the instant of its admission was admitted, and
            # gives its place back below.
            async with asyncio.timeout(left_s if left_s < float("inf") else None):
                await asyncio.shield(admitted)
        except BaseException as error:
            self._give_up(ticket, admitted)
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the deadline passed in the queue") from None
            raise
        return ticket

    def _give_up(self, ticket: Ticket, admitted: asyncio.Future[None]) -> None:
        if self._waiting.pop(ticket, None) is not None:
            self.admission.leave(ticket)
        elif not admitted.cancelled() and admitted.exception() is None:
            self.admission.finish(ticket, 0.0)  # admitted in the same instant as given up
            self.settle()


class Gate:
    """The doors of all models, and the quotas, which are a tenant's whatever model it asks for."""

    def __init__(self, settings: AdmissionSettings | None = None) -> None:
        settings = settings or AdmissionSettings()
        self.class_of = settings.class_of
        self.quotas = Quotas(settings.quota_of(), settings.quota_burst_s)
        self.doors: defaultdict[str, Door] = defaultdict(lambda: Door(Admission(settings)))

    @asynccontextmanager
    async def place(self, model: str, ask: Ask) -> AsyncIterator[Place]:
        """As `Door.place`; also Overloaded where the tenant has used up its quota."""
        self.check_quota(ask.tenant)
        async with self.doors[model].place(ask) as place:
            yield place

    def check_quota(self, tenant: str) -> None:
        """Raises Overloaded where the tenant has used it up."""
        self.quotas.check(tenant, time.monotonic())

    def resize(self, model: str, capacity: Capacity) -> None:
        """What is known of a model's workers changed."""
        door = self.doors[model]
        door.admission.capacity = capacity
        door.settle()

    def crowds(self) -> dict[str, Crowd]:
        """What this router has of each model, where it has something."""
        crowds = {model: door.admission.crowd for model, door in self.doors.items()}
        return {model: crowd for model, crowd in crowds.items() if any(crowd)}

    def note_elsewhere(self, reports: Sequence[Mapping[str, Crowd]]) -> None:
        """What every other router has, in place of what they said before."""
        for model in {*self.doors, *chain.from_iterable(reports)}:
            door = self.doors[model]
            crowds = [report[model] for report in reports if model in report]
            door.admission.elsewhere = Crowd(*map(sum, zip(*crowds, strict=True)))
            door.admission.num_routers = 1 + len(reports)
            door.settle()

    def work_s(self, model: str, num_tokens: int) -> float:
        return self.doors[model].admission.work_s(num_tokens)

    def spend(self, tenant: str, num_tokens: int) -> None:
        """Tokens that count against the tenant's quota."""
        self.quotas.spend(tenant, num_tokens, time.monotonic())

    @property
    def num_in_flight(self) -> int:
        return sum(door.admission.num_in_flight for door in self.doors.values())

    @property
    def num_waiting(self) -> int:
        return sum(door.admission.num_waiting for door in self.doors.values())
