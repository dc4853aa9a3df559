"""A worker's side of the cluster state: tells every registry, every second, that and how it lives.

It runs on a thread and an event loop of its own, so that nothing the worker computes can starve it.
It knows no engine, what to report comes from a callback; and no wire, a `Registry` speaks that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol, Self

from baton.config import Times
from baton.errors import BatonError
from baton.state.base import Report

logger = logging.getLogger(__name__)

_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 1.0
_FIRST_TOLD_AGAIN_S, _LAST_TOLD_AGAIN_S = 5.0, 300.0
_STOP_S = 2.0  # how long leaving may take before registries are left to their leases


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease, for `lease_s` from now. `others`: registries where the worker is to register as well; the
    next grant of the same registry says so anew."""

    lease_s: float
    others: Sequence[Registry] = ()


class Registry(Protocol):
    """Where a worker registers: a router, or a store that routers read."""

    @property
    def name(self) -> str:
        """For logs, and to tell registries apart."""
        ...

    def register(self, reports: AsyncIterator[Report]) -> AsyncGrants:
        """Passes reports on as they come, and yields what each was granted. The last report drains: after
        it the worker has left. Raises a BatonError where the registry is lost or refuses."""
        ...


class AsyncGrants(Protocol):
    def __aiter__(self) -> AsyncIterator[Grant]: ...
    async def aclose(self) -> None: ...


@dataclass(slots=True)
class Told:
    """When one and the same trouble is told: at once, then at growing intervals."""

    next_s: float = -math.inf
    interval_s: float = _FIRST_TOLD_AGAIN_S

    def is_due(self, now_s: float) -> bool:
        if now_s < self.next_s:
            return False
        self.next_s = now_s + self.interval_s
        self.interval_s = min(_LAST_TOLD_AGAIN_S, 2 * self.interval_s)
        return True


class Registration:
    """Keeps a worker registered at every one of `registries`, from `start` to `stop`.

    `report` is called on this thread, so it must be quick and safe there. Where it raises, that is
    logged and nothing is sent: a worker that cannot say how it is does not count as alive for long.
    """

    def __init__(
        self,
        registries: Iterable[Registry],
        report: Callable[[], Report],
        times: Times | None = None,
    ) -> None:
        self._configured = {registry.name: registry for registry in registries}
        self._report = report
        self._times = times or Times()
        self._granted: dict[str, float] = {}  # registry's name -> end of the lease it gave
        self._others: dict[str, Sequence[Registry]] = {}  # that a registry named last
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._changed = threading.Condition()
        self._stopping = asyncio.Event()
        self._running: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None

    def start(self) -> None:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(loop,), name="registration", daemon=True)
        self._running = thread, loop
        thread.start()

    def stop(self) -> None:
        """Leaves every registry and ends the thread. One that does not answer keeps its lease."""
        if self._running is not None:
            thread, loop = self._running
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
                loop.call_soon_threadsafe(self._stopping.set)
            thread.join()

    def registered(self) -> frozenset[str]:
        """Names of the registries whose lease this worker holds."""
        with self._changed:
            now_s = time.monotonic()
            return frozenset(name for name, end_s in self._granted.items() if end_s > now_s)

    def wait_registered(self, timeout_s: float) -> bool:
        """Whether, within the timeout, any registry has given a lease."""
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
        self._keep_wanted()
        await self._stopping.wait()
        keepers = list(self._keepers.values())
        if keepers:
            await asyncio.wait(keepers, timeout=_STOP_S)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    def _keep_wanted(self) -> None:
        """Registers with whoever is wanted now, and no more with whom no registry names any longer."""
        named = {each.name: each for others in self._others.values() for each in others}
        wanted = {**named, **self._configured}
        for name in self._keepers.keys() - wanted.keys():
            self._keepers.pop(name).cancel()
            self._others.pop(name, None)
            self._forget(name)
        for name in wanted.keys() - self._keepers.keys():
            self._keepers[name] = asyncio.create_task(self._keep(wanted[name]), name=name)

    async def _keep(self, registry: Registry) -> None:
        """One registry: call after call until this worker stops. The first failure is told, further ones
        ever more seldom."""
        backoff_s = _MIN_BACKOFF_S
        told = Told()
        while not self._stopping.is_set():
            try:
                await self._register(registry)
                lost = "it ended the call"
            except BatonError as error:
                lost = str(error)
            except TimeoutError:
                lost = "no answer for the time of a lease"
            if self._forget(registry.name):
                backoff_s = _MIN_BACKOFF_S
                told = Told()
            if not self._stopping.is_set() and told.is_due(time.monotonic()):
                logger.warning("registration at %s: %s; trying again", registry.name, lost)
            await self._pause(backoff_s)
            backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s)

    async def _register(self, registry: Registry) -> None:
        """One call, until it ends: with an error, by silence (TimeoutError), or because we
        leave."""
        loop = asyncio.get_running_loop()
        async with (
            asyncio.timeout(self._times.worker_lease_s) as limit,
            aclosing(registry.register(self._reports())) as grants,
        ):
            async for grant in grants:
                limit.reschedule(loop.time() + grant.lease_s)
                with self._changed:
                    self._granted[registry.name] = time.monotonic() + grant.lease_s
                    self._changed.notify_all()
                self._others[registry.name] = grant.others
                self._keep_wanted()

    async def _reports(self) -> AsyncIterator[Report]:
        """One per interval; the last one says that this worker leaves."""
        leaving = False
        while not leaving:
            leaving = self._stopping.is_set()
            try:
                report = self._report()
            except Exception:
                logger.exception("this worker cannot say how it is, so it does not report")
            else:
                yield replace(report, draining=report.draining or leaving)
            if not leaving:
                await self._pause(self._times.report_interval_s)

    def _forget(self, name: str) -> bool:
        """Whether the registry had given a lease, which now counts no more, and we did not leave."""
        with self._changed:
            known = self._granted.pop(name, None) is not None
        return known and not self._stopping.is_set()

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not past the moment of leaving."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
