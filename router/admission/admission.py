"""Who may start now, who waits, who is refused. Pure: the caller waits and keeps the time.

    enter ── quota, deadline ── queue ── settle ── in flight ── computed ── finish
             refused at once      └── shed: the lowest class first

What counts is work: the seconds that a worker will take for a request's prompt, by the cost that workers
have measured. No worker gets more than `max_outstanding_s` ahead of what it computes, so the order is
decided here, where all requests are known. What waits is bounded by the time it will take.
Until that is measured, work counts for nothing and only the numbers bound. Numbers are of samples: a
request of 128 samples is as many streams as 128 requests of one.

Several routers share the limits. Each counts what the others say they have, which is a moment old; and each
has an equal part of every limit for itself, whatever the others have, so that none waits for ever while
another fills each place as it gets free.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from math import inf

from baton.errors import ConfigError, Overloaded
from baton.state.base import Crowd
from router.admission.capacity import Capacity
from router.admission.fair_queue import FairQueue, Ticket

_WEIGHT = 0.1  # of a new service time in the running mean
_LEAST_RETRY_S = 0.1


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """In flight: at most `max_in_flight_per_pool` samples per decode pool, and `max_outstanding_s` of
    prompts per worker that computes them. Waiting: at most `max_queued_s` of prompts per such worker, and
    `max_waiting` samples. A class has `class_ratio` times the weight of the next lower one; the highest
    is `max_priority`, the lowest its negative, whatever callers ask for. `shares` (TENANT=WEIGHT) and
    `quotas` (TENANT=TOKENS_PER_S): the tenant * is everyone not named, a share is 1 and a quota none
    where nothing is said."""

    max_in_flight_per_pool: int = 256
    max_outstanding_s: float = 2.0
    max_queued_s: float = 30.0
    max_waiting: int = 1024
    class_ratio: float = 4.0
    max_priority: int = 3
    shares: tuple[str, ...] = ()
    quotas: tuple[str, ...] = ()
    quota_burst_s: float = 10.0

    def __post_init__(self) -> None:
        for name in (
            "max_in_flight_per_pool",
            "max_outstanding_s",
            "max_queued_s",
            "quota_burst_s",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError("must be more than 0", field=name)
        for name in ("max_waiting", "max_priority"):
            if getattr(self, name) < 0:
                raise ConfigError("must not be negative", field=name)
        if self.class_ratio < 1:
            raise ConfigError("must be at least 1: higher classes weigh more", field="class_ratio")
        self.share_of()
        self.quota_of()

    def class_of(self, priority: int) -> int:
        """The class that a caller gets who asks for `priority`."""
        return max(-self.max_priority, min(self.max_priority, priority))

    def fair_queue(self) -> FairQueue:
        """An empty one, in which classes and tenants weigh as is said here."""
        shares = self.share_of()
        return FairQueue(
            lambda priority: self.class_ratio**priority,
            lambda tenant: shares.get(tenant, shares.get("*", 1.0)),
        )

    def share_of(self) -> dict[str, float]:
        return _numbers("shares", self.shares)

    def quota_of(self) -> dict[str, float]:
        return _numbers("quotas", self.quotas)


def _numbers(name: str, entries: tuple[str, ...]) -> dict[str, float]:
    """TENANT=NUMBER each; a tenant's name may hold a =."""
    numbers = {}
    for entry in entries:
        tenant, _, number = entry.rpartition("=")
        try:
            numbers[tenant] = float(number)
        except ValueError:
            raise ConfigError(f"must be TENANT=NUMBER, not {entry!r}", field=name) from None
        if not 0 < numbers[tenant] < inf:
            raise ConfigError(f"must be more than 0: {entry!r}", field=name)
    return numbers


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for. `deadline_s`: on the caller's clock, inf for none. `work_s`: of a worker,
    0 where nobody knows."""

    priority: int = 0
    tenant: str = ""
    deadline_s: float = inf
    work_s: float = 0.0
    num_samples: int = 1


class Admission:
    """The queue of one model. `capacity` may change at any time; `settle` then decides anew."""

    def __init__(self, settings: AdmissionSettings | None = None) -> None:
        self.settings = settings or AdmissionSettings()
        self.service_s = 1.0  # mean time in flight
        self.outstanding_s = 0.0
        self.capacity = Capacity()
        self.elsewhere = Crowd()  # at the doors of the other routers
        self.num_routers = 1
        self._queue = self.settings.fair_queue()
        self._in_flight: dict[Ticket, float] = {}  # with the work that is not done yet
        self._num_samples_waiting = 0
        self._num_samples_in_flight = 0
        self._numbers = count()

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def queued_s(self) -> float:
        """The work that waits."""
        return self._queue.work_s

    @property
    def crowd(self) -> Crowd:
        return Crowd(
            self._num_samples_in_flight,
            self.outstanding_s,
            self._num_samples_waiting,
            self.queued_s,
        )

    def work_s(self, num_tokens: int) -> float:
        """What computing so many tokens of a prompt takes of a worker."""
        cost = self.capacity.cost
        return cost.prompt_s(num_tokens) if cost else 0.0

    def enter(self, ask: Ask, now_s: float) -> Ticket:
        """A place in the queue; `settle` decides on it. Raises Overloaded where the first token would
        come after the deadline: the work is better spent on others."""
        ticket = Ticket(
            ask.deadline_s,
            next(self._numbers),
            self.settings.class_of(ask.priority),
            ask.tenant,
            ask.work_s,
            ask.num_samples,
        )
        self._queue.add(ticket)
        self._num_samples_waiting += ticket.num_samples
        if ask.deadline_s < inf:
            late_s = now_s + self.wait_s(ticket) + ask.work_s - ask.deadline_s
            if late_s > 0:
                self.leave(ticket)
                raise Overloaded(
                    f"the first token would come {late_s:.2f} s after the deadline",
                    retry_after_s=max(_LEAST_RETRY_S, late_s),
                )
        return ticket

    def settle(self, now_s: float) -> tuple[list[Ticket], list[tuple[Ticket, Overloaded]]]:
        """Those who start now, and those refused: too late for their deadlines, or more than may wait."""
        started, refused = [], []
        while self._queue and self._has_room_for(self._queue.first()):
            ticket = self._queue.pop()
            self._num_samples_waiting -= ticket.num_samples
            if now_s + ticket.work_s > ticket.deadline_s:
                refused.append((ticket, self._too_late(ticket)))
                continue
            self._in_flight[ticket] = ticket.work_s
            self._num_samples_in_flight += ticket.num_samples
            self.outstanding_s += ticket.work_s
            started.append(ticket)
        while self._is_overfull:
            ticket = self._queue.last()
            refused.append((ticket, self._overfull(ticket)))
            self.leave(ticket)
        return started, refused

    def leave(self, ticket: Ticket) -> None:
        """The request of `ticket` waits no more."""
        self._queue.remove(ticket)
        self._num_samples_waiting -= ticket.num_samples

    def computed(self, ticket: Ticket) -> None:
        """The prompt of a request in flight is computed. May be said again."""
        self.outstanding_s = max(0.0, self.outstanding_s - self._in_flight[ticket])
        self._in_flight[ticket] = 0.0

    def finish(self, ticket: Ticket, in_flight_s: float) -> None:
        """A request in flight ended after `in_flight_s`."""
        self.computed(ticket)
        del self._in_flight[ticket]
        self._num_samples_in_flight -= ticket.num_samples
        self.service_s += _WEIGHT * (in_flight_s - self.service_s)

    def wait_s(self, ticket: Ticket) -> float:
        """How long `ticket` will likely wait here and at the workers: for work, or for a place. While it
        waits here, those who wait at other routers are served as well, each router's as much."""
        here_s, num_here = self._queue.ahead_s(ticket), self._num_samples_waiting
        others = self.num_routers - 1
        queued_s = here_s + min(self.elsewhere.queued_s, here_s * others)
        outstanding_s = self.outstanding_s + self.elsewhere.outstanding_s
        num_samples = self._num_samples_in_flight + self.elsewhere.num_in_flight
        num_samples += num_here + min(self.elsewhere.num_waiting, num_here * others)
        num_over = max(0, num_samples - self._max_in_flight)
        return max(
            (outstanding_s + queued_s) / self._num_computing_pools,
            num_over / self._max_in_flight * self.service_s,
        )

    @property
    def _max_in_flight(self) -> int:
        # Where no worker is left, one is expected back.
        return self.settings.max_in_flight_per_pool * max(1, self.capacity.num_decode_pools)

    @property
    def _num_computing_pools(self) -> int:
        return max(1, self.capacity.num_computing_pools)

    def _has_room_for(self, ticket: Ticket) -> bool:
        """A request that is alone here always has, however many samples it has; no prompt is too long."""
        limit_s = self.settings.max_outstanding_s * self._num_computing_pools
        here_s, elsewhere_s = self.outstanding_s, self.elsewhere.outstanding_s
        if here_s + elsewhere_s >= limit_s and here_s >= limit_s / self.num_routers:
            return False
        num_samples = self._num_samples_in_flight + ticket.num_samples
        is_crowded = self._exceeds(num_samples, self.elsewhere.num_in_flight, self._max_in_flight)
        return not (is_crowded and self._in_flight)

    def _exceeds(self, here: float, elsewhere: float, limit: float) -> bool:
        """Whether it is more than all routers may have together, and more than this one's part."""
        return here + elsewhere > limit and here > limit / self.num_routers

    @property
    def _is_overfull(self) -> bool:
        """A single request is never too much to wait, where any may."""
        if self.num_waiting <= min(1, self.settings.max_waiting):
            return False
        limit_s = self.settings.max_queued_s * self._num_computing_pools
        elsewhere = self.elsewhere
        return self._exceeds(self._queue.work_s, elsewhere.queued_s, limit_s) or self._exceeds(
            self._num_samples_waiting, elsewhere.num_waiting, self.settings.max_waiting
        )

    def _overfull(self, ticket: Ticket) -> Overloaded:
        return Overloaded(
            f"{self.num_in_flight} requests run and {self.num_waiting - 1} wait for "
            f"{self.queued_s:.1f} s of work: the queue is full",
            retry_after_s=max(_LEAST_RETRY_S, self.wait_s(ticket)),
        )

    def _too_late(self, ticket: Ticket) -> Overloaded:
        return Overloaded(
            "its turn came too late for its deadline",
            retry_after_s=max(_LEAST_RETRY_S, self.queued_s / self._num_computing_pools),
        )
