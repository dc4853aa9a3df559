"""Cluster state that several routers share: workers write their leases to Redis, routers read them.

    worker --report--> Redis <--read, every `read_interval_s`-- router
                         ^----- what it has in flight ----------'

What was read last is kept as an `EmbeddedState`, which alone answers `snapshot` and `watch`: so routing
never waits for Redis, and goes on with the last known state while Redis is gone. No lease runs out
meanwhile; the death of a worker is still seen by the end of its streams. Reading again and again heals
whatever was missed, also a Redis that comes back empty: workers write themselves in again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from baton.config import Times
from baton.errors import BatonError
from baton.state import records, redis_leases
from baton.state.base import Change, Member, Report, RouterReport
from baton.state.embedded import EmbeddedState
from baton.state.redis_store import RedisStore

logger = logging.getLogger(__name__)

_NUM_AT_ONCE = 16  # records are taken before others have their turn on the event loop


class _Seen(NamedTuple):
    """A worker's record as it was read last."""

    value: bytes
    beat: int
    report: Report


class RedisState:
    """A `ClusterState`; `run` follows Redis until cancelled. `clock`: monotonic seconds."""

    def __init__(
        self, url: str, times: Times | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._times = times or Times()
        self._read_interval_s = self._times.report_interval_s / 2
        self._fade_s = (
            2 * self._times.report_interval_s
        )  # what a router said is not true for longer
        self._clock = clock
        self._store = RedisStore(url)
        self._known = EmbeddedState(self._times, clock)
        self._seen: dict[str, _Seen] = {}  # by worker id
        self._others: tuple[RouterReport, ...] = ()
        self._others_read_s = 0.0
        self._is_lost = False

    async def report(self, report: Report) -> float:
        """For a worker that registers with a router all the same: written to Redis as if by itself."""
        return await redis_leases.renew(self._store, report, self._times)

    async def leave(self, worker_id: str, incarnation: int, reason: str) -> None:
        await redis_leases.leave(self._store, worker_id, self._times)

    def snapshot(self) -> list[Member]:
        return self._known.snapshot()

    def watch(self) -> AsyncIterator[Change]:
        return self._known.watch()

    async def exchange(self, own: RouterReport) -> Sequence[RouterReport]:
        try:
            value = records.pack_router(own)
            await self._store.write("router", own.router_id, 0, value, self._fade_s)
            read = await self._store.read("router")
        except BatonError:  # `run` tells of it
            if self._clock() - self._others_read_s > self._fade_s:
                self._others = ()
            return self._others
        others = (_router(router_id, value) for router_id, value in read.items())
        self._others = tuple(each for each in others if each and each.router_id != own.router_id)
        self._others_read_s = self._clock()
        return self._others

    async def run(self) -> None:
        last_s = self._clock()
        async with self._store:
            while True:
                try:
                    await self._take(await self._store.read("worker"))
                    self._found()
                except BatonError as error:
                    self._lost(error)
                    self._known.extend(self._clock() - last_s)
                last_s = self._clock()
                await asyncio.sleep(self._read_interval_s)

    async def _take(self, read: dict[str, bytes]) -> None:
        """What has a new beat is a report; what drained and is listed no more has left. Who is merely
        not listed may find Redis restarted: its lease decides."""
        fresh = {
            worker_id: value
            for worker_id, value in read.items()
            if worker_id not in self._seen or self._seen[worker_id].value != value
        }
        for number, (worker_id, value) in enumerate(fresh.items(), start=1):
            try:
                report, beat = records.unpack_worker(value)
            except ValueError as error:
                logger.warning("baton:worker:%s in Redis is passed over: %s", worker_id, error)
                continue
            known = self._seen.get(worker_id)
            self._seen[worker_id] = _Seen(value, beat, report)
            if known is None or known.beat != beat:
                await self._renew(report)
            if number % _NUM_AT_ONCE == 0:
                await asyncio.sleep(0)
        for worker_id in self._seen.keys() - read.keys():
            report = self._seen.pop(worker_id).report
            if report.draining:
                await self._known.leave(worker_id, report.info.incarnation, "drained")

    async def _renew(self, report: Report) -> None:
        try:
            await self._known.report(report)
        except (
            BatonError
        ) as error:  # Redis lost a younger incarnation, and an older one wrote itself in
            logger.warning("%s", error)

    def _lost(self, error: BatonError) -> None:
        if not self._is_lost:
            logger.warning("routing goes on with the last known workers: %s", error)
        self._is_lost = True

    def _found(self) -> None:
        if self._is_lost:
            logger.warning("Redis is back")
            self._known.extend(self._times.worker_lease_s)  # workers have to find it, too
        self._is_lost = False


def _router(router_id: str, value: bytes) -> RouterReport | None:
    try:
        return records.unpack_router(value)
    except ValueError as error:
        logger.warning("baton:router:%s in Redis is passed over: %s", router_id, error)
        return None
