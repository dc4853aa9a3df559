"""Keeps what runs equal to what is wanted: performs what `reconcile` decides, and notes what happens.

It knows names, and how one of them is started (`Launcher`); not what runs under a name. Everything is on
one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from baton.cluster import reconcile
from baton.cluster.reconcile import Action, Drain, Forget, Instance, Kill, Limits, Phase, Start
from baton.errors import BatonError, Unavailable

_TICK_S = 0.1  # between two looks at what is due by time alone
_STARTING_PROBE_S = 0.05


class Running(Protocol):
    """Something started: a router's process, a worker's actor."""

    @property
    def pid(self) -> int: ...
    async def serves(self) -> bool:
        """Whether it says, now, that it can serve."""

    async def lives(self) -> bool:
        """Whether it says, now, that it makes progress; asked once it has served. One that leaves does,
        whoever told it to."""

    async def ended(self) -> BatonError | None:
        """Waits for its end. None: it left in order."""

    async def drain(self) -> None: ...
    async def kill(self) -> None:
        """Returns when it has ended."""


Launcher = Callable[[str], Awaitable[Running]]


class Controller:
    """`tell` gets one line for everything an operator should hear of. `restarts`: whether what died is
    started again; off while a cluster first starts, when that would only fail again."""

    def __init__(self, launch: Launcher, limits: Limits, tell: Callable[[str], None]) -> None:
        self.limits = limits
        self.known: dict[str, Instance] = {}
        self.restarts = False
        self._launch = launch
        self._tell = tell
        self._wanted: tuple[str, ...] = ()
        self._running: dict[str, Running] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._died_s: dict[str, float] = {}

    def want(self, names: Iterable[str]) -> None:
        """What is to run from now on."""
        self._wanted = tuple(names)
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled; then it leaves everything as it is."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                due = reconcile.reconcile(self._wanted, self.known, time.monotonic(), self.limits)
                for action in list(due):
                    self._perform(action, tasks)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK_S):
                        await self._changed.wait()

    def pids(self) -> Mapping[str, int]:
        """Of what runs now."""
        return {name: each.pid for name, each in dict(self.known).items() if each.pid}

    async def kill_all(self) -> None:
        """What still runs, whatever is wanted. `restarts` is to be off."""
        await asyncio.gather(*(self._kill(name) for name in self.pids()))

    def _perform(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        name = action.name
        match action:
            case Start():
                before = self.known.get(name)
                if before is not None and not self.restarts:
                    return
                self.known[name] = reconcile.started(name, before, time.monotonic())
                self._tend(name, tasks)
            case Drain():
                self._tell(f"{name} drains")
                self.known[name] = reconcile.draining(self.known[name], time.monotonic())
                tasks.create_task(self._drain(name))
            case Kill(why=why):
                if name in self._wanted:
                    self._tell(f"{name} {why}: killed")
                self.known[name] = reconcile.draining(
                    self.known[name], time.monotonic(), Unavailable(why)
                )
                tasks.create_task(self._kill(name))
            case Forget():
                del self.known[name]

    def _tend(self, name: str, tasks: asyncio.TaskGroup) -> None:
        self._running.pop(name, None)
        self._lives[name] = tasks.create_task(self._live(name), name=name)

    async def _live(self, name: str) -> None:
        """One instance, from its start to its end."""
        try:
            running = await self._launch(name)
        except BatonError as error:
            self._note_end(name, error)
            return
        except asyncio.CancelledError:
            self._note_end(name, None)
            raise
        self._running[name] = running
        self.known[name] = replace(self.known[name], pid=running.pid)
        probe = asyncio.create_task(self._probe(name, running))
        try:
            why = await running.ended()
        finally:
            probe.cancel()
        await asyncio.wait({probe})
        self._note_end(name, why)

    async def _probe(self, name: str, running: Running) -> None:
        while True:
            starting = self.known[name].phase is Phase.STARTING
            if await (running.serves() if starting else running.lives()):
                self._note_answer(name)
            else:
                self.known[name] = reconcile.asked_in_vain(self.known[name], time.monotonic())
            starting = self.known[name].phase is Phase.STARTING
            await asyncio.sleep(_STARTING_PROBE_S if starting else self.limits.probe_s)

    def _note_answer(self, name: str) -> None:
        now_s = time.monotonic()
        first = self.known[name].phase is Phase.STARTING
        self.known[name] = reconcile.answered(self.known[name], now_s)
        if first and name in self._died_s:
            self._tell(f"{name} is back after {now_s - self._died_s.pop(name):.1f} s")

    def _note_end(self, name: str, error: BatonError | None) -> None:
        before, now_s = self.known[name], time.monotonic()
        if before.phase is Phase.DRAINING:
            error = before.error  # it was told to leave, or killed for this
        self.known[name] = reconcile.ended(before, error, now_s, self.limits)
        if name in self._wanted:
            self._died_s.setdefault(name, now_s)
            again = "; starting it again" if self.restarts else ""
            if before.pid:
                why = f"died: {error}" if error else "left"
                self._tell(f"{name} (process {before.pid}) {why}{again}")
            else:
                self._tell(f"{name} could not be started: {error or 'given up'}{again}")
        self._changed.set()

    async def _drain(self, name: str) -> None:
        try:
            await self._running[name].drain()
        except BatonError as error:
            self._tell(f"{name} cannot be told to leave ({error}): killed")
            await self._kill(name)

    async def _kill(self, name: str) -> None:
        if name not in self._running:  # it has no process yet that we know
            self._lives[name].cancel()
            return
        try:
            await self._running[name].kill()
        except BatonError as error:
            self._tell(f"{name}: {error}")
