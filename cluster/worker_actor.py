"""A worker as the controller sees it: a Ray actor, with a process that can be watched and killed.

Ray is asked to start it and where it runs, and says when it died. Everything else goes to the process:
death is seen by its pidfd, draining is a gRPC call, killing a signal, where it runs on this machine.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from baton.errors import BatonError, Unavailable, from_code
from cluster import confirmed_kill, probe
from cluster.quiet_ray import ray
from worker.actor import Description, Launch, Outcome, WorkerActor

_CREATE_S = 60.0
_LEAVE_S = 5.0
_NUM_THREADS = 8  # of Ray's, for calls: every `serve` takes one


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """`detached`: lives on when this process is gone, to be found by `name` in `namespace`."""

    name: str
    namespace: str
    detached: bool


def create(launch: Launch, node_id: str, options: ActorOptions) -> Any:
    """The handle; returns before the process is there. Here and nowhere else a class becomes an actor."""
    node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    known_as = {"name": options.name, "namespace": options.namespace, "lifetime": "detached"}
    actor = ray.remote(WorkerActor).options(
        num_cpus=0,  # cores are given out by our placement
        max_restarts=0,  # the controller restarts
        max_concurrency=_NUM_THREADS,
        scheduling_strategy=node,
        **(known_as if options.detached else {}),
    )
    try:
        return actor.remote(launch)
    except ray.exceptions.ActorAlreadyExistsError as error:  # of one that Ray still takes for alive
        raise Unavailable(str(error)) from error


def find(options: ActorOptions) -> Any | None:
    """The handle of a living actor of this name."""
    try:
        return ray.get_actor(options.name, namespace=options.namespace)
    except ValueError:
        return None


async def describe(actor: Any) -> Description:
    """Raises Unavailable where its process does not come up."""
    try:
        async with asyncio.timeout(_CREATE_S):
            description: Description = await _answer(actor.describe.remote())
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise Unavailable(f"its process did not start: {error}") from error
    return description


async def end(actor: Any) -> None:
    """Kills it, and waits until Ray says that it is dead."""
    serving = actor.serve.remote()
    ray.kill(actor)
    await asyncio.wait({asyncio.wrap_future(serving.future())}, timeout=_LEAVE_S)


def existing(namespace: str) -> list[str]:
    """Names of the detached actors of this namespace."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return [entry["name"] for entry in named if entry["namespace"] == namespace]


async def _answer(reference: Any) -> Any:
    return await asyncio.wrap_future(reference.future())


class WorkerProcess:
    """A living actor that serves. `is_local`: its process is on this machine."""

    def __init__(self, actor: Any, description: Description, is_local: bool) -> None:
        self.pid = description.pid
        self._actor = actor
        self._host = description.launch.config.host
        self._is_local = is_local
        self._address = ""  # from when it is registered
        self._outcome: asyncio.Task[Outcome] = asyncio.create_task(_answer(actor.serve.remote()))
        # When the process is seen to have ended, nobody asks any more what Ray says to it.
        self._outcome.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def serves(self) -> bool:
        if not self._address:
            member = await probe.find_worker(self._host.routers, self._host.worker_id, self.pid)
            if member is None:
                return False
            self._address = member.info.address
        return await probe.serves(self._address)

    async def lives(self) -> bool:
        return await probe.lives(self._address)

    async def ended(self) -> BatonError | None:
        gone = asyncio.create_task(self._gone())
        both: set[asyncio.Task[Any]] = {self._outcome, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not self._outcome.done():
            return Unavailable("its process ended")
        try:
            outcome = self._outcome.result()
        except ray.exceptions.RayActorError:
            return Unavailable("its process ended")
        await self._leave()
        if not outcome.code:
            return None
        return from_code(outcome.code, outcome.message, field=outcome.field)

    async def drain(self) -> None:
        if not self._address:
            raise Unavailable("it is not registered")
        await probe.drain_worker(self._address, self._host.drain_grace_s)

    async def kill(self) -> None:
        if self._is_local:
            await asyncio.to_thread(confirmed_kill.kill_confirmed, self.pid)
            return
        ray.kill(self._actor)
        await self._gone()

    async def _gone(self) -> None:
        """Waits for the end of the process, on another machine by Ray's word."""
        if self._is_local:
            await confirmed_kill.ended(self.pid)
        else:
            await asyncio.wait({self._outcome})

    async def _leave(self) -> None:
        """It has served; its process exits, with 0 where it can."""
        self._actor.__ray_terminate__.remote()
        if not self._is_local:
            return
        try:
            async with asyncio.timeout(_LEAVE_S):
                await confirmed_kill.ended(self.pid)
        except TimeoutError:
            await self.kill()
