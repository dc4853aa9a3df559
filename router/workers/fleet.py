"""The workers as this router sees them: who is there, a stream to each decode worker, their pools.

Follows the cluster state. A worker can be chosen while it is registered, not draining, and its stream
is open; the stream's end is the normal way its death is seen, long before its lease runs out. One that
says that it hangs is treated as dead: its streams are closed, so that what it had goes on elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import grpc

from baton.errors import NotFound, Unavailable
from baton.rpc.channel import channel
from baton.state.base import ClusterState, Joined, Left, Member, Updated
from baton.types import PoolId, PrefillChoice, Role, WorkerInfo
from baton.v1 import decode_pb2
from router.admission.capacity import Capacity, capacity_of
from router.routing.index import BlockIndex
from router.routing.pools import Pool, Pools
from router.routing.ring import NUM_LINKS, Ring
from router.workers.decode_stream import DecodeStream, Leg
from router.workers.kv_follower import KvFollower

log = logging.getLogger(__name__)

_MEASURE_INTERVAL_S = 1.0  # a change of loads alone is told at most so often


class _Worker:
    """A worker's connections: events of every pool, and to a decode worker the stream of requests."""

    def __init__(self, member: Member, index: BlockIndex, stream: DecodeStream | None) -> None:
        info = member.info
        self.incarnation = info.incarnation
        self.channel: grpc.aio.Channel = channel(info.address)
        self.stream = stream
        self.followers = [
            KvFollower(PoolId(info.worker_id, dp_rank), self.channel, index)
            for dp_rank in range(info.num_dp_ranks)
        ]
        runs = [follower.run() for follower in self.followers]
        if stream is not None:
            runs.append(stream.run(self.channel))
        self._tasks = [asyncio.create_task(run, name=info.worker_id) for run in runs]

    @property
    def connected(self) -> bool:
        if self.stream is not None:
            return self.stream.connected
        return all(follower.connected for follower in self.followers)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self.channel.close()


class Fleet:
    """`run` follows the cluster state until cancelled. `on_capacity` hears of each model's workers.
    `num_links`: the prefill workers that a decode worker is told to open links to before it needs them."""

    def __init__(
        self,
        state: ClusterState,
        pools: Pools,
        index: BlockIndex,
        router_id: str,
        on_capacity: Callable[[str, Capacity], None],
        num_links: int = NUM_LINKS,
    ) -> None:
        self.pools = pools
        self.index = index
        self._state = state
        self._router_id = router_id
        self._on_capacity = on_capacity
        self._num_links = num_links
        self._introduced: int | None = None  # the version of the pools that was told last
        self._measured_s = 0.0  # when the capacities were told last
        self._workers: dict[str, _Worker] = {}
        # The workers of each set of weights, by model
        self._told: dict[str, dict[str, list[str]]] = {}
        self._told_version = -1
        self._changed = asyncio.Condition()

    def takes(self, pool: Pool) -> bool:
        """Whether `pool` can take a request now."""
        worker = self._workers.get(pool.id.worker_id)
        return not pool.draining and worker is not None and worker.connected

    def connected(self, role: Role, model: str) -> list[Pool]:
        """The pools that can take a request now."""
        return [pool for pool in self.pools.serving(role, model) if self.takes(pool)]

    def is_connected(self, info: WorkerInfo) -> bool:
        """Whether this incarnation of a worker can be reached now."""
        worker = self._workers.get(info.worker_id)
        return worker is not None and worker.incarnation == info.incarnation and worker.connected

    def is_serving(self) -> bool:
        """Whether any model has a decode worker that takes requests."""
        return any(self.connected(Role.DECODE, model) for model in self.pools.models())

    async def wait_for_change(self, timeout_s: float) -> bool:
        """Waits until a worker came, went or (dis)connected; False where nothing did in time."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)), self._changed:
                await self._changed.wait()
            return True
        except TimeoutError:
            return False

    def start(self, pool: Pool, message: decode_pb2.Start) -> Leg:
        """Starts an attempt on `pool`. Raises Unavailable where its worker is not connected."""
        worker = self._workers.get(pool.id.worker_id)
        if worker is None or worker.stream is None or worker.incarnation != pool.worker.incarnation:
            raise Unavailable(f"worker {pool.id.worker_id} is gone")
        return worker.stream.start(message)

    def worker_channel(self, worker_id: str) -> grpc.aio.Channel:
        """For calls to the worker's other services. Raises NotFound."""
        worker = self._workers.get(worker_id)
        if worker is None:
            raise NotFound(f"no worker is called {worker_id!r}", field="worker_id")
        return worker.channel

    async def run(self) -> None:
        try:
            async for change in self._state.watch():
                match change:
                    case Joined(member) | Updated(member) if self._is_news(member):
                        await self._follow(member)
                        await self._announce()
                    case Joined(member) | Updated(member) if not member.hung:
                        self._update(member)
                        if time.monotonic() - self._measured_s > _MEASURE_INTERVAL_S:
                            await self._announce()
                    case Left(member):
                        await self._leave(member)
                        await self._announce()
        finally:
            for worker in list(self._workers.values()):
                await worker.close()

    def _is_news(self, member: Member) -> bool:
        """Whether the worker came, hangs from now on, or goes on."""
        return member.hung == (member.info.worker_id in self._workers)

    async def _follow(self, member: Member) -> None:
        if member.hung:
            log.warning("worker %s hangs: it is given up until it goes on", member.info.worker_id)
            await self._leave(member)
        else:
            self._join(member)

    def _join(self, member: Member) -> None:
        self._update(member)
        stream = None
        if member.info.role is Role.DECODE:
            stream = DecodeStream(member.info.worker_id, self._router_id, self._stream_changed)
        self._workers[member.info.worker_id] = _Worker(member, self.index, stream)

    def _update(self, member: Member) -> None:
        self.pools.put(member.info, draining=member.draining)
        for load in member.loads:
            self.pools.report(load)

    async def _leave(self, member: Member) -> None:
        self.pools.remove(member.info.worker_id)
        if worker := self._workers.pop(member.info.worker_id, None):
            await worker.close()

    async def _stream_changed(self) -> None:
        self._introduced = None
        await self._announce()

    def _introduce(self) -> None:
        """Decode workers open their links when workers meet, so that no hand-off waits for one."""
        if self._introduced == self.pools.version:
            return
        self._introduced = self.pools.version
        rings = {
            model: Ring(self.pools.serving(Role.PREFILL, model)) for model in self.pools.models()
        }
        for worker_id, worker in self._workers.items():
            pool = self.pools.get(PoolId(worker_id))
            if worker.stream is not None and pool is not None and pool.worker.model in rings:
                near = rings[pool.worker.model].nearest(pool.id, self._num_links)
                worker.stream.meet(
                    PrefillChoice(each.id, each.worker.incarnation, each.worker.address)
                    for each in near
                )

    async def _announce(self) -> None:
        self._introduce()
        self._measured_s = time.monotonic()
        for model in self.pools.models():
            self._on_capacity(model, capacity_of(self.pools, model))
        self._tell_of_weights()
        async with self._changed:
            self._changed.notify_all()

    def _tell_of_weights(self) -> None:
        """Says so where workers of one model have several sets of weights, and when that is over."""
        if self._told_version == self.pools.version:
            return
        self._told_version = self.pools.version
        for model in self.pools.models():
            found: dict[str, list[str]] = {}
            for worker in self.pools.workers(model):
                found.setdefault(worker.fingerprint.identity, []).append(worker.worker_id)
            told = self._told.get(model, {})
            self._told[model] = found
            if len(found) > 1 and found != told:
                each = "; ".join(f"{name} on {', '.join(ids)}" for name, ids in found.items())
                log.warning(
                    "model %s is served with %d sets of weights: %s. No answer mixes them",
                    *(model, len(found), each),
                )
            elif len(found) == 1 < len(told):
                log.info("model %s is served with one set of weights again: %s", model, *found)
