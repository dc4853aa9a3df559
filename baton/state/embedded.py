"""Cluster state inside the router: nothing to install, gone with the process. Workers register
again with their next report, so a restarted router knows everyone within one heartbeat."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from weakref import WeakSet

from baton.config import Times
from baton.state.base import Change, Joined, Member, Report, RouterReport
from baton.state.leases import LeaseTable

_STALL_S = 1.0  # a timer this late says that the process stood still, not that its workers died


class EmbeddedState:
    """A `ClusterState` on the running event loop. `clock`: monotonic seconds."""

    def __init__(
        self, times: Times | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._table = LeaseTable((times or Times()).worker_lease_s)
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        # Weak: a watch that nobody iterates any more is forgotten with its iterator.
        self._queues: WeakSet[asyncio.Queue[Change]] = WeakSet()

    async def run(self) -> None:
        """Nothing is kept but what reports arm."""
        await asyncio.Event().wait()

    async def report(self, report: Report) -> float:
        self._publish(self._table.report(report, self._clock()))
        self._arm()
        return self._table.lease_s

    async def leave(self, worker_id: str, incarnation: int, reason: str) -> None:
        self._publish(self._table.leave(worker_id, incarnation, reason, self._clock()))

    def snapshot(self) -> list[Member]:
        return self._table.snapshot(self._clock())

    def watch(self) -> AsyncIterator[Change]:
        queue: asyncio.Queue[Change] = asyncio.Queue()
        for member in self.snapshot():
            queue.put_nowait(Joined(member))
        self._queues.add(queue)
        return _drain(queue)

    async def exchange(self, own: RouterReport) -> Sequence[RouterReport]:
        return ()

    def extend(self, by_s: float) -> None:
        """Gives every lease more time, where reports cannot arrive."""
        self._table.extend(by_s)

    def _publish(self, changes: Iterable[Change]) -> None:
        for change in changes:
            for queue in self._queues:
                queue.put_nowait(change)

    def _arm(self) -> None:
        """Sees to it that leases are looked at when the first of them may run out."""
        if self._timer is not None:
            return  # whose look finds all that is due by then: every report comes here
        if (due_s := self._table.next_expiry_s) is not None:
            delay_s = max(0.0, due_s - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._look, due_s)

    def _look(self, due_s: float) -> None:
        self._timer = None
        late_s = self._clock() - due_s
        if late_s > _STALL_S:
            self._table.extend(late_s + self._table.lease_s)
        self._publish(self._table.expire(self._clock()))
        self._arm()


async def _drain(queue: asyncio.Queue[Change]) -> AsyncIterator[Change]:
    while True:
        yield await queue.get()
