"""A worker's side of the Registry: tells every router, every second, that and how it lives.

It runs on a thread and an event loop of its own, so that nothing the worker computes can starve it.
It knows no engine: what to report comes from a callback.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

import grpc

from baton import convert
from baton.config import Times
from baton.errors import BatonError
from baton.rpc.channel import channel
from baton.rpc.status import from_rpc_error
from baton.state.base import Report
from baton.v1 import worker_pb2, worker_pb2_grpc

logger = logging.getLogger(__name__)

_MAX_BACKOFF_S = 1.0
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
        self._granted: dict[str, float] = {}  # router address -> end of the lease it gave
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Leaves every router and ends the thread. A router that does not answer keeps its lease."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def registered(self) -> frozenset[str]:
        """Addresses of the routers whose lease this worker holds."""
        with self._changed:
            now_s = time.monotonic()
            return frozenset(at for at, end_s in self._granted.items() if end_s > now_s)

    def wait_registered(self, timeout_s: float) -> bool:
        """Whether, within the timeout, any router has given a lease."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self.registered()), timeout_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._keep_all())

    async def _keep_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(router)) for router in self._routers]
            await self._stopping.wait()
            await asyncio.wait(keepers, timeout=_STOP_S)
            for keeper in keepers:
                keeper.cancel()

    async def _keep(self, router: str) -> None:
        """One router: call after call until this worker stops."""
        backoff_s = 0.1
        while not self._stopping.is_set():
            try:
                await self._one_call(router)
                backoff_s = 0.1
            except grpc.aio.AioRpcError as error:
                self._lost(router, from_rpc_error(error))
            except TimeoutError:
                self._lost(router, BatonError("no answer for the time of a lease"))
            with self._changed:
                self._granted.pop(router, None)
            await self._pause(backoff_s)
            backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s)

    def _lost(self, router: str, error: BatonError) -> None:
        known = router in self._granted
        logger.log(logging.WARNING if known else logging.DEBUG, "router %s: %s", router, error)
