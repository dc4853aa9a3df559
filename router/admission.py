"""Who may start now, who waits, who is refused. Pure: the caller waits and keeps the time.

At most `max_in_flight` requests are with the workers; at most `max_waiting` wait here, most urgent first.
Whoever finds the queue full is refused at once with the time after which a place is likely, unless it is
more urgent than the last in the queue, who is then refused in its place.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from itertools import count

from baton.errors import Overloaded

_WEIGHT = 0.1  # of a new service time in the running mean


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A place in the queue; the order is urgency. `urgency` is the negated priority."""

    urgency: int
    number: int


@dataclass(slots=True)
class Admission:
    """`max_in_flight` follows the number of workers; `service_s` is the mean time in flight."""

    max_in_flight: int
    max_waiting: int
    service_s: float = 1.0
    num_in_flight: int = 0
    _waiting: list[Ticket] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def retry_after_s(self) -> float:
        """When a request refused now would likely find a place."""
        rounds = (len(self._waiting) + 1) / max(1, self.max_in_flight)
        return max(0.1, rounds * self.service_s)

    def enter(self, priority: int) -> tuple[Ticket, Ticket | None]:
        """A place in the queue, and whom it displaced. Raises Overloaded where there is none."""
        ticket = Ticket(-priority, next(self._numbers))
        bisect.insort(self._waiting, ticket)
        if len(self._waiting) <= self.max_waiting or self.num_in_flight < self.max_in_flight:
            return ticket, None
        last = self._waiting.pop()
        if last == ticket:
            raise self.refusal()
        return ticket, last

    def refusal(self) -> Overloaded:
        return Overloaded(
            f"{self.num_in_flight} requests run and {self.max_waiting} wait: the queue is full",
            retry_after_s=self.retry_after_s,
        )

    def next(self) -> Ticket | None:
        """Takes the most urgent ticket in flight where there is room."""
        if not self._waiting or self.num_in_flight >= self.max_in_flight:
            return None
        self.num_in_flight += 1
        return self._waiting.pop(0)

    def leave(self, ticket: Ticket) -> None:
        """The request of `ticket` gave up while it waited."""
        self._waiting.remove(ticket)

    def finish(self, in_flight_s: float) -> None:
        """A request in flight ended after `in_flight_s`."""
        self.num_in_flight -= 1
        self.service_s += _WEIGHT * (in_flight_s - self.service_s)
