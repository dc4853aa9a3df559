"""Cluster state: who is alive, with which role, address, capacity, fingerprint and load; and what the
routers of a cluster tell each other.

The seam between a router and the store behind it. A store knows no requests and no KV events. Reads
are of the last known state and never wait, so that routing goes on while a store is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from baton.types import PoolId, PoolLoad, WorkerInfo


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself: `info` once, the rest every second. `hung`: it makes no progress; what
    it was given goes on elsewhere."""

    info: WorkerInfo
    loads: tuple[PoolLoad, ...] = ()
    draining: bool = False
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that holds a lease. `lease_remaining_s`: when this was written. `connected`: whether the
    router that was asked has streams to it."""

    info: WorkerInfo
    loads: tuple[PoolLoad, ...]
    draining: bool
    lease_remaining_s: float = field(compare=False)
    connected: bool = field(default=False, compare=False)
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Joined:
    member: Member


@dataclass(frozen=True, slots=True)
class Updated:
    """Its loads, its state or its description changed; its incarnation is the same."""

    member: Member


@dataclass(frozen=True, slots=True)
class Left:
    member: Member
    reason: str


Change: TypeAlias = Joined | Updated | Left


@dataclass(frozen=True, slots=True)
class InFlight:
    """What a router has sent to a pool and not seen the end of. `num_queued_tokens`: those of its prompt
    tokens that are not computed yet."""

    num_requests: int = 0
    num_queued_tokens: int = 0


class Crowd(NamedTuple):
    """What a router has of one model at its door: samples and seconds of prompts, admitted and not
    computed yet, and those that wait."""

    num_in_flight: int = 0
    outstanding_s: float = 0.0
    num_waiting: int = 0
    queued_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RouterReport:
    """What a router tells the other ones. `in_flight`: only pools that have something. `spent_tokens`: of
    tenants with a quota, all tokens since this router started. `crowds`: by model, only where there is
    one."""

    router_id: str
    in_flight: Mapping[PoolId, InFlight]
    spent_tokens: Mapping[str, float]
    crowds: Mapping[str, Crowd] = field(default_factory=dict)


class ClusterState(Protocol):
    async def run(self) -> None:
        """Keeps the state until cancelled."""
        ...

    async def report(self, report: Report) -> float:
        """Registers a worker or renews its lease; for how many seconds. A higher incarnation
        replaces the one that is known; a lower one is refused with `InvalidArgument`."""
        ...

    async def leave(self, worker_id: str, incarnation: int, reason: str) -> None:
        """Ends the lease of exactly this incarnation; another one, or none, is left as it is."""
        ...

    def snapshot(self) -> Sequence[Member]:
        """Everyone alive, by worker id."""
        ...

    def watch(self) -> AsyncIterator[Change]:
        """Everyone alive as `Joined`, then every change in order, for as long as it is iterated."""
        ...

    async def exchange(self, own: RouterReport) -> Sequence[RouterReport]:
        """Tells the other routers and returns what they told last: nothing where a store serves one
        router only. Never raises: while the store is gone, what is known fades within seconds."""
        ...
