"""A worker process, whatever its role: engine, step loop, gRPC server, registration, drain.

    role (pure) <--events/plans--> StepLoop (engine's thread) <--post/deliver--> services (event loop)
                                                       Registration (its own thread) --> routers

The Host performs; the role decides. It ends when it was drained, or with the error that broke the engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any, Generic, Protocol, TypeVar

from baton.engine.runner import ModelRunner
from baton.engine.warm_up import warm_up
from baton.errors import Draining
from baton.model_name import name_of
from baton.rpc.server import Server, ServerOptions, address_of
from baton.scheduling.accounts import Accounts, pool_load
from baton.state.base import Report
from baton.state.registration import Registration
from baton.state.registries import registries
from baton.types import Fingerprint, PoolId, PoolLoad, WorkerInfo
from baton.types import Role as RoleName
from baton.v1 import worker_pb2_grpc
from baton.worker.address import told_host
from baton.worker.config import HostConfig
from baton.worker.kv_events import KvEventLog
from baton.worker.service import WorkerService
from baton.worker.step_loop import Role, Runner, StepLoop
from baton.worker.watchdog import Watchdog

log = logging.getLogger(__name__)

Event = TypeVar("Event")
Commands = TypeVar("Commands")
EventIn = TypeVar("EventIn", contravariant=True)
CommandsOut = TypeVar("CommandsOut", covariant=True)
Answer = TypeVar("Answer")

_DRAIN_POLL_S = 0.05
_INCARNATION_BITS = 12  # of chance; with the milliseconds since 1970 they fit a double, until 2039


class HostedScheduler(Accounts, Protocol):
    """A role's scheduler."""

    def check_integrity(self) -> None: ...


class HostedRole(Role[EventIn, CommandsOut], Protocol[EventIn, CommandsOut]):
    """A role and its accounts; all read on the engine's thread."""

    @property
    def name(self) -> RoleName: ...
    @property
    def scheduler(self) -> HostedScheduler: ...
    @property
    def num_requests(self) -> int: ...
    def start_draining(self) -> None: ...


class Host(Generic[Event, Commands]):
    """Made on the event loop it runs on. `server` takes the role's services before `run`. `runner` runs
    the steps on `model`; `deliver` performs the role's commands, on the engine's thread."""

    def __init__(
        self,
        config: HostConfig,
        model: ModelRunner,
        runner: Runner,
        role: HostedRole[Event, Commands],
        deliver: Callable[[Commands], None],
    ) -> None:
        self.config = config
        self.server = Server(ServerOptions(host=config.host, port=config.port))
        self._model = model
        self._role = role
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._steps = StepLoop(role, runner, self._after_step, self.fail)
        self._watchdog = Watchdog(self._steps, config.times)
        self._events = KvEventLog(role.scheduler.blocks, self._loop)
        self._worker_id = config.worker_id or _new_name(role.name)
        self._incarnation = _new_incarnation()
        self._told_host = told_host(config)
        self._model_name = config.model_name or name_of(config.engine.model)
        self._load = self.load()
        self._draining = False
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def post(self, event: Event) -> None:
        """Hands an event to the role. Any thread."""
        self._steps.post(event)

    async def run(self, *background: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Serves until drained, and runs the role's `background` meanwhile. Raises what broke the engine or
        that, if something did. SIGTERM and SIGINT drain where it runs on the main thread; in a Ray actor
        it does not, and signals are Ray's."""
        service = WorkerService(self, self.config.drain_grace_s)
        self.server.add_background(worker_pb2_grpc.add_WorkerServicer_to_server, service)
        await self.server.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.drain, self.config.drain_grace_s)
        self._steps.start()
        await self.ask(self._warm_up)
        await self.server.set_serving(True)
        config = self.config
        known = registries(config.routers, config.state, config.times)
        registration = Registration(known, self._report, config.times)
        registration.start()
        log.info("%s serves on %s", self._worker_id, self.server.address)
        dog = self._watchdog.watch(self._set_well)
        tasks = [self._loop.create_task(each) for each in (dog, *(each() for each in background))]
        for task in tasks:
            task.add_done_callback(self._background_ended)
        try:
            await self._ended
        finally:
            for task in tasks:
                task.cancel()
            self._draining = True
            await asyncio.to_thread(registration.stop)
            await self.server.drain(0.0)
            await asyncio.to_thread(self._steps.stop)

    # What the cluster is told

    @property
    def info(self) -> WorkerInfo:
        model, layout = self._model, self._model.layout
        return WorkerInfo(
            worker_id=self._worker_id,
            incarnation=self._incarnation,
            role=self._role.name,
            address=address_of(self._told_host, self.server.port),
            model=self._model_name,
            fingerprint=Fingerprint(
                # Workers whose blocks differ share neither prefixes nor hand-offs.
                identity=f"{model.identity}-{layout.block_size}",
                block_size=layout.block_size,
                tensor_parallel_size=1,
                kv_dtype=str(layout.dtype).removeprefix("torch."),
                num_layers=layout.num_layers,
                num_kv_heads=layout.num_kv_heads,
                head_dim=layout.head_dim,
            ),
            max_model_len=model.max_model_len,
            vocab_size=model.model_config.vocab_size,
            num_dp_ranks=1,
            num_total_blocks=model.num_blocks,
            package_version=version("baton-serving"),
            transports=self.config.transports,
            host_id=socket.gethostname(),
            pid=os.getpid(),
        )

    @property
    def pool_id(self) -> PoolId:
        return PoolId(self._worker_id)

    @property
    def incarnation(self) -> int:
        return self._incarnation

    def ask(self, question: Callable[[], Answer]) -> asyncio.Future[Answer]:
        """Runs `question` on the engine's thread between two steps, where it may read the role."""
        return asyncio.wrap_future(self._steps.ask(question), loop=self._loop)

    def load(self) -> PoolLoad:
        """The pool's load now. On the engine's thread."""
        return pool_load(self.pool_id, self._incarnation, self._role.scheduler)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every block is accounted for. On the engine's thread."""
        self._role.scheduler.check_integrity()

    def is_hung(self) -> bool:
        """Whether it makes no progress. Any thread."""
        return self._watchdog.is_hung()

    async def _set_well(self, well: bool) -> None:
        await self.server.set_serving(well)
        await self.server.set_alive(well)

    @property
    def kv_events(self) -> KvEventLog:
        return self._events

    # How it ends

    def drain(self, grace_s: float) -> None:
        """Leaves: no new requests, those that run have `grace_s`, what is left then goes on elsewhere.
        Called again, it does not wait any longer."""
        if self._draining:
            self._end(None)
            return
        log.info("%s drains", self._worker_id)
        self._draining = True
        self._drain_task = self._loop.create_task(self._drain(grace_s))

    async def _drain(self, grace_s: float) -> None:
        await self.server.leave()
        await self.ask(self._role.start_draining)
        give_up_s = time.monotonic() + grace_s
        while await self.ask(lambda: self._role.num_requests):
            if time.monotonic() >= give_up_s:
                await self.ask(self._hand_over)
                break
            await asyncio.sleep(_DRAIN_POLL_S)
        await asyncio.sleep(_DRAIN_POLL_S)  # for the last words to leave
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """Ends this worker with what broke it. Any thread."""
        self._loop.call_soon_threadsafe(self._end, error)

    def _hand_over(self) -> None:
        """What still runs goes on elsewhere: its router hears so and continues it."""
        self._role.fail_all(Draining("the worker is leaving"), time.monotonic())

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    # On the engine's thread

    def _warm_up(self) -> None:
        warm_up(self._model, self._role.scheduler.step_time)
        self._load = self.load()

    def _after_step(self, commands: Commands) -> None:
        self._events.publish()
        self._load = self.load()
        self._deliver(commands)

    # On the registration's thread

    def _report(self) -> Report:
        return Report(self.info, (self._load,), self._draining, self.is_hung())


def _new_name(role: RoleName) -> str:
    """Unlike any other's: pids repeat across containers, and host names across containers of one host."""
    return f"{role.name.lower()}-{socket.gethostname()}-{secrets.token_hex(3)}"


def _new_incarnation() -> int:
    """Higher than those before, where the clock does not go back, and unlike one made at the same time."""
    return (time.time_ns() // 1_000_000) << _INCARNATION_BITS | secrets.randbits(_INCARNATION_BITS)
