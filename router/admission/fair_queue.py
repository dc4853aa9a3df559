"""The order in which requests leave the queue: classes by weight, in a class tenants by weight, of one
tenant the earliest deadline first. Pure; knows no clock, no workers and no limits.

    queue ── class 1, weight 4 ── tenant "acme", weight 2 ── tickets by deadline, then by arrival
         │                     └─ tenant "",     weight 1 ── ...
         └── class 0, weight 1 ── ...

On both levels it is start-time fair queueing (Goyal, Vin, Cheng 1996): every flow has a tag, what it was
given over its weight; the lowest tag goes next, and a flow that was idle begins at the tag served last, so
that nobody saves up. A flow that waits is always served in the end, whatever the others ask for.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Generic, Protocol, TypeVar

_MIN_COST_S = 1e-3  # of a sample: work that is known as nothing counts as this


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """A request in the queue; their order is that within one tenant of one class. `deadline_s`: inf for
    none. `work_s`: the seconds of one worker that its prompt will take."""

    deadline_s: float
    number: int
    priority: int = field(default=0, compare=False)
    tenant: str = field(default="", compare=False)
    work_s: float = field(default=0.0, compare=False)
    num_samples: int = field(default=1, compare=False)


KeyT = TypeVar("KeyT", bound=Hashable)


class Waiting(Protocol):
    """A lane, or flows of lanes."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Ticket]: ...
    @property
    def work_s(self) -> float: ...


WaitingT = TypeVar("WaitingT", bound=Waiting)


class FairQueue:
    """`class_weight` and `tenant_weight`: from a priority, from a tenant's name, to a positive weight."""

    def __init__(
        self, class_weight: Callable[[int], float], tenant_weight: Callable[[str], float]
    ) -> None:
        self._classes = _Flows[int, _Flows[str, _Lane]](
            class_weight, lambda: _Flows(tenant_weight, _Lane)
        )

    def __len__(self) -> int:
        return len(self._classes)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._classes)

    @property
    def work_s(self) -> float:
        return self._classes.work_s

    def add(self, ticket: Ticket) -> None:
        self._classes.enter(ticket.priority).enter(ticket.tenant).add(ticket)

    def remove(self, ticket: Ticket) -> None:
        """A ticket that leaves without being served: nobody is charged."""
        tenants = self._classes.flows[ticket.priority]
        tenants.flows[ticket.tenant].remove(ticket)
        tenants.tidy(ticket.tenant)
        self._classes.tidy(ticket.priority)

    def first(self) -> Ticket:
        """The next to be served."""
        tenants = self._classes.flows[self._classes.first()]
        return tenants.flows[tenants.first()].tickets[0]

    def pop(self) -> Ticket:
        """Serves the first; its class and its tenant are charged its work."""
        ticket = self.first()
        cost_s = max(ticket.work_s, _MIN_COST_S * ticket.num_samples)
        self._classes.flows[ticket.priority].charge(ticket.tenant, cost_s)
        self._classes.charge(ticket.priority, cost_s)
        self.remove(ticket)
        return ticket

    def last(self) -> Ticket:
        """Whom the queue can spare first: in the lowest class, of the tenant that has the most waiting for
        its weight, the one with the latest deadline."""
        tenants = self._classes.flows[min(self._classes.flows)]
        return tenants.flows[tenants.fullest()].tickets[-1]

    def ahead_s(self, ticket: Ticket) -> float:
        """The work that will likely be done before that of `ticket`, which waits here."""
        tenants = self._classes.flows[ticket.priority]
        own_s = tenants.flows[ticket.tenant].work_until(ticket)
        in_class_s = tenants.while_served_s(ticket.tenant, own_s)
        return self._classes.while_served_s(ticket.priority, in_class_s) - ticket.work_s


class _Lane:
    """The waiting tickets of one tenant in one class."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.work_s = 0.0

    def __len__(self) -> int:
        return len(self.tickets)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self.tickets)

    def add(self, ticket: Ticket) -> None:
        bisect.insort(self.tickets, ticket)
        self.work_s += ticket.work_s

    def remove(self, ticket: Ticket) -> None:
        index = bisect.bisect_left(self.tickets, ticket)
        assert self.tickets[index] is ticket
        del self.tickets[index]
        self.work_s -= ticket.work_s

    def work_until(self, ticket: Ticket) -> float:
        """Its own and all before it."""
        return sum(each.work_s for each in self.tickets[: bisect.bisect(self.tickets, ticket)])


class _Flows(Generic[KeyT, WaitingT]):
    """Flows that share by weight; only those that wait are in `flows`. `make`: an empty one."""

    def __init__(self, weight: Callable[[KeyT], float], make: Callable[[], WaitingT]) -> None:
        self.flows: dict[KeyT, WaitingT] = {}
        self._weight = weight
        self._make = make
        self._tags: dict[KeyT, float] = {}
        self._served = 0.0  # the tag of whoever was served last

    def __len__(self) -> int:
        return sum(map(len, self.flows.values()))

    def __iter__(self) -> Iterator[Ticket]:
        return chain.from_iterable(self.flows.values())

    @property
    def work_s(self) -> float:
        return sum(flow.work_s for flow in self.flows.values())

    def enter(self, key: KeyT) -> WaitingT:
        """The flow of `key`; one that was idle begins now."""
        if key not in self.flows:
            self.flows[key] = self._make()
            self._tags[key] = max(self._served, self._tags.get(key, 0.0))
        return self.flows[key]

    def first(self) -> KeyT:
        return min(self.flows, key=self._tags.__getitem__)

    def charge(self, key: KeyT, cost_s: float) -> None:
        self._served = self._tags[key]
        self._tags[key] += cost_s / self._weight(key)

    def tidy(self, key: KeyT) -> None:
        """Forgets a flow that is empty, and the tags that mean no more than a new one's."""
        if not self.flows[key]:
            del self.flows[key]
            ahead = {each for each, tag in self._tags.items() if tag > self._served}
            self._tags = {each: self._tags[each] for each in ahead | self.flows.keys()}

    def fullest(self) -> KeyT:
        return max(self.flows, key=lambda key: self.flows[key].work_s / self._weight(key))

    def while_served_s(self, key: KeyT, own_s: float) -> float:
        """What all flows together are given while that of `key` is given `own_s`: the others get in
        proportion, but no more than they wait for."""
        per_weight_s = own_s / self._weight(key)
        others = (
            min(flow.work_s, per_weight_s * self._weight(each))
            for each, flow in self.flows.items()
            if each != key
        )
        return own_s + sum(others)
