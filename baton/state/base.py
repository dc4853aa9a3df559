"""Cluster state: who is alive, with which role, address, capacity, fingerprint and load.

The seam between a router and the store behind it. A store knows no requests and no KV events. Reads
are of the last known state and never wait, so that routing goes on while a store is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from baton.types import PoolLoad, WorkerInfo


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself: `info` once, the rest every second."""

    info: WorkerInfo
    loads: tuple[PoolLoad, ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A worker that holds a lease. `lease_remaining_s`: when this was written. `connected`: whether the
    router that was asked has streams to it."""

    info: WorkerInfo
    loads: tuple[PoolLoad, ...]
    draining: bool
    lease_remaining_s: float = field(compare=False)
    connected: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Joined:
    member: Member


@dataclass(frozen=True, slots=True)
class Updated:
    """Its loads, its draining or its description changed; its incarnation is the same."""

    member: Member


@dataclass(frozen=True, slots=True)
class Left:
    member: Member
    reason: str


Change: TypeAlias = Joined | Updated | Left


class ClusterState(Protocol):
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
