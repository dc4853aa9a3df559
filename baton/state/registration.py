"""A worker's side of the Registry: tells every router, every second, that and how it lives.

It runs on a thread and an event loop of its own, so that nothing the worker computes can starve it.
It knows no engine: what to report comes from a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

import grpc

from baton import convert
from baton.config import Times
from baton.rpc.channel import channel
from baton.rpc.status import from_rpc_error
from baton.state.base import Report
from baton.types import WorkerInfo
from baton.v1 import worker_pb2, worker_pb2_grpc

logger = logging.getLogger(__name__)

_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 1.0
_STOP_S = 2.0  # how long leaving may take before routers are left to their leases


class Registration:
    """Keeps a worker registered at every one of `routers`, from `start` to `stop`.

    `report` is called on this thread, so it must be quick and safe there. Where it raises, that is
    logged and nothing is sent: a worker that cannot say how it is does not count as alive for long.
    """

    def __init__(
        self, routers: Sequence[str], report: Callable[[], Report], times: Times | None = None
    ) -> None:
        self._routers = tuple(routers)
        self._report = report
        self._times = times or Times()
        self._granted: dict[str, float] = {}  # router's address -> end of the lease it gave
        self._changed = threading.Condition()
        self._stopping = asyncio.Event()
        self._running: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None

    def start(self) -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name="registration", daemon=True)
        self._running = thread, loop
        thread.start()

    def stop(self) -> None:
        """Leaves every router and ends the thread. A router that does not answer keeps its
        lease."""
        if self._running is not None:
            thread, loop = self._running
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
                loop.call_soon_threadsafe(self._stopping.set)
            thread.join()

    def registered(self) -> frozenset[str]:
        """Addresses of the routers whose lease this worker holds."""
        with self._changed:
            now_s = time.monotonic()
            return frozenset(router for router, end_s in self._granted.items() if end_s > now_s)

    def wait_registered(self, timeout_s: float) -> bool:
        """Whether, within the timeout, any router has given a lease."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self.registered()), timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._keep_all())

    async def _keep_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(router)) for router in self._routers]
            await self._stopping.wait()
            if keepers:
                await asyncio.wait(keepers, timeout=_STOP_S)
            for keeper in keepers:
                keeper.cancel()

    async def _keep(self, router: str) -> None:
        """One router: call after call until this worker stops."""
        backoff_s = _MIN_BACKOFF_S
        while not self._stopping.is_set():
            try:
                await self._register(router)
                lost = "it ended the call"
            except grpc.aio.AioRpcError as error:
                lost = str(from_rpc_error(error))
            except TimeoutError:
                lost = "no answer for the time of a lease"
            if self._forget(router):
                logger.warning("registration at %s: %s", router, lost)
                backoff_s = _MIN_BACKOFF_S
            await self._pause(backoff_s)
            backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s)

    async def _register(self, router: str) -> None:
        """One call, until it ends: with an error, by silence (TimeoutError), or because we
        leave."""
        loop = asyncio.get_running_loop()
        lease_s = self._times.worker_lease_s
        async with channel(router) as link, asyncio.timeout(lease_s) as limit:
            async for grant in worker_pb2_grpc.RegistryStub(link).Register(self._messages()):
                limit.reschedule(loop.time() + grant.lease_s)
                with self._changed:
                    self._granted[router] = time.monotonic() + grant.lease_s
                    self._changed.notify_all()

    async def _messages(self) -> AsyncIterator[worker_pb2.WorkerReport]:
        """A report per interval; the last one says that this worker leaves, then the call ends."""
        info: WorkerInfo | None = None  # that the router knows
        leaving = False
        while not leaving:
            leaving = self._stopping.is_set()
            try:
                report = self._report()
            except Exception:
                logger.exception("this worker cannot say how it is, so it does not report")
            else:
                message = worker_pb2.WorkerReport(
                    loads=[convert.pool_load_to_proto(load) for load in report.loads],
                    draining=report.draining or leaving,
                    worker_time_s=time.monotonic(),
                )
                if report.info != info:
                    message.info.CopyFrom(convert.worker_info_to_proto(report.info))
                    info = report.info
                yield message
            if not leaving:
                await self._pause(self._times.report_interval_s)

    def _forget(self, router: str) -> bool:
        """Whether the router had given a lease, which now counts no more, and we did not leave."""
        with self._changed:
            known = self._granted.pop(router, None) is not None
        return known and not self._stopping.is_set()

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not past the moment of leaving."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
