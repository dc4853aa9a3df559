"""The controller with workers that are none: it starts, restarts, kills and drains what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from baton.cluster.controller import Controller
from baton.cluster.reconcile import Limits, Phase
from baton.errors import BatonError, ConfigError, Internal, Unavailable

LIMITS = Limits(
    start_s=0.3,
    silent_s=0.5,
    drain_s=0.3,
    stable_s=0.01,
    backoff_s=0.01,
    max_backoff_s=0.02,
    probe_s=0.05,
)


@dataclass(eq=False)
class FakeWorker:
    pid: int
    answers: bool = True
    takes: bool = True
    leaves: bool = True
    done: asyncio.Future[BatonError | None] = field(default_factory=asyncio.Future)
    drained: bool = False
    killed: bool = False

    num_asked: int = 0
    cannot_be_killed: BatonError | None = None

    async def serves(self) -> bool:
        return self.answers and self.takes

    async def lives(self) -> bool:
        self.num_asked += 1
        return self.answers

    async def ended(self) -> BatonError | None:
        return await asyncio.shield(self.done)

    async def drain(self) -> None:
        self.drained = True
        if self.leaves:
            self.done.set_result(None)

    async def kill(self) -> None:
        self.killed = True
        if self.cannot_be_killed is not None:
            raise self.cannot_be_killed
        self.done.set_result(Unavailable("killed"))

    def die(self) -> None:
        self.done.set_result(Unavailable("kill -9"))


class Fleet:
    """Hands out workers and remembers every one by name, in the order of their starts."""

    def __init__(self) -> None:
        self.started: dict[str, list[FakeWorker]] = {}
        self.refuses: dict[str, BatonError] = {}
        self.hangs: set[str] = set()
        self.told: list[str] = []
        self.controller = Controller(self.launch, LIMITS, self.told.append)
        self.controller.restarts = True

    async def launch(self, name: str) -> FakeWorker:
        if name in self.hangs:
            await asyncio.Event().wait()
        if name in self.refuses:
            self.started.setdefault(name, [])
            raise self.refuses[name]
        worker = FakeWorker(pid=1000 + sum(map(len, self.started.values())))
        self.started.setdefault(name, []).append(worker)
        return worker

    def now(self, name: str) -> FakeWorker:
        return self.started[name][-1]

    def runs(self, name: str) -> bool:
        known = self.controller.known.get(name)
        return known is not None and known.phase is Phase.RUNNING


@asynccontextmanager
async def fleet(*names: str) -> AsyncIterator[Fleet]:
    it = Fleet()
    it.controller.want(names)
    running = asyncio.create_task(it.controller.run())
    try:
        yield it
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the controller tells nobody when it changes
            await asyncio.sleep(0.005)


async def test_what_is_wanted_comes_to_run() -> None:
    async with fleet("prefill-0", "decode-0") as it:
        await until(lambda: it.runs("prefill-0") and it.runs("decode-0"))
        assert it.controller.pids() == {"prefill-0": 1000, "decode-0": 1001}
    assert it.told == []


async def test_a_dead_worker_is_started_again_and_its_neighbour_left_alone() -> None:
    async with fleet("decode-0", "decode-1") as it:
        await until(lambda: it.runs("decode-0") and it.runs("decode-1"))
        it.now("decode-0").die()
        await until(lambda: len(it.started["decode-0"]) == 2 and it.runs("decode-0"))
        assert len(it.started["decode-1"]) == 1
        assert it.controller.pids()["decode-0"] == 1002
    died, back = it.told
    assert died == "decode-0 (process 1000) died: kill -9; starting it again"
    assert back.startswith("decode-0 is back after ")


async def test_a_silent_worker_is_killed_and_replaced() -> None:
    async with fleet("decode-0") as it:
        await until(lambda: it.runs("decode-0"))
        first = it.now("decode-0")
        first.answers = False
        await until(lambda: it.runs("decode-0") and it.now("decode-0") is not first)
        assert first.killed
        assert not first.drained
    assert it.told[0] == "decode-0 has not answered for 0.5 s: killed"


async def test_one_that_somebody_drains_has_all_the_time_it_was_given() -> None:
    async with fleet("decode-0") as it:
        await until(lambda: it.runs("decode-0"))
        leaver = it.now("decode-0")
        leaver.takes = False
        enough = leaver.num_asked + 2 + int(LIMITS.silent_s / LIMITS.probe_s)
        await until(lambda: leaver.num_asked >= enough)
        assert not leaver.killed
        await leaver.drain()
        await until(lambda: it.runs("decode-0") and it.now("decode-0") is not leaver)
    assert it.told[0] == "decode-0 (process 1000) left; starting it again"


async def test_a_worker_that_is_never_ready_is_killed_and_replaced() -> None:
    async with fleet() as it:
        it.hangs.add("decode-0")
        it.controller.want(["decode-0"])
        await until(lambda: "decode-0 was not ready after 0.3 s: killed" in it.told)
        it.hangs.clear()
        await until(lambda: it.runs("decode-0"))


async def test_scaling_down_drains() -> None:
    async with fleet("decode-0", "decode-1") as it:
        await until(lambda: it.runs("decode-0") and it.runs("decode-1"))
        leaver = it.now("decode-1")
        it.controller.want(["decode-0"])
        await until(lambda: set(it.controller.known) == {"decode-0"})
        assert leaver.drained
        assert not leaver.killed
        assert len(it.started["decode-1"]) == 1


async def test_a_worker_that_does_not_leave_is_killed() -> None:
    async with fleet("decode-0") as it:
        await until(lambda: it.runs("decode-0"))
        it.now("decode-0").leaves = False
        it.controller.want([])
        await until(lambda: not it.controller.known)
        assert it.now("decode-0").killed


async def test_whoever_cannot_be_killed_ends_no_controller() -> None:
    async with fleet("decode-0", "decode-1") as it:
        await until(lambda: it.runs("decode-0") and it.runs("decode-1"))
        it.now("decode-0").leaves = False
        it.now("decode-0").cannot_be_killed = Internal("Ray's own trouble")
        it.controller.want(["decode-1"])
        await until(lambda: "decode-0: Ray's own trouble" in it.told)
        it.now("decode-1").die()
        await until(lambda: len(it.started["decode-1"]) == 2 and it.runs("decode-1"))


async def test_one_drained_by_someone_else_comes_back() -> None:
    async with fleet("decode-0") as it:
        await until(lambda: it.runs("decode-0"))
        await it.now("decode-0").drain()
        await until(lambda: len(it.started["decode-0"]) == 2 and it.runs("decode-0"))
    assert it.told[0] == "decode-0 (process 1000) left; starting it again"


async def test_what_cannot_start_is_tried_again_until_it_can() -> None:
    async with fleet() as it:
        it.refuses["decode-0"] = ConfigError("is missing", field="model")
        it.controller.want(["decode-0"])
        await until(lambda: len(it.told) >= 3)
        assert all("model: is missing" in line for line in it.told)
        it.refuses.clear()
        await until(lambda: it.runs("decode-0"))


async def test_while_a_cluster_first_starts_nothing_is_tried_again() -> None:
    async with fleet() as it:
        it.controller.restarts = False
        it.refuses["decode-0"] = ConfigError("is missing", field="model")
        it.controller.want(["decode-0"])
        await until(lambda: bool(it.told))
        await asyncio.sleep(0.3)
        assert len(it.told) == 1
        instance = it.controller.known["decode-0"]
        assert (instance.phase, instance.error) == (Phase.ENDED, it.refuses["decode-0"])
