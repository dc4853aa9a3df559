"""When a worker counts as hung."""

from __future__ import annotations

import asyncio
import threading

from baton.config import Times
from baton.worker.watchdog import Watchdog
from tests.unit.test_step_loop import Worker, running

LIMIT_S = 5.0
TIMES = Times(watchdog_s=LIMIT_S)


class Engine:
    def __init__(self) -> None:
        self.busy_since_s: float | None = None
        self.longest_step_s = 0.0


def test_an_engine_that_stays_with_one_thing_hangs_until_it_goes_on() -> None:
    engine, now_s = Engine(), 100.0
    dog = Watchdog(engine, TIMES, lambda: now_s)
    assert not dog.is_hung(), "it waits"
    engine.busy_since_s = now_s
    now_s += LIMIT_S
    assert not dog.is_hung()
    now_s += 0.1
    assert dog.is_hung()
    engine.longest_step_s = 1.0  # it has had steps so long that this may be one more
    assert not dog.is_hung()
    engine.longest_step_s, engine.busy_since_s = 0.0, now_s
    assert not dog.is_hung()


async def test_health_is_off_while_a_step_hangs_and_on_again_after_it() -> None:
    engine, now_s = Engine(), 100.0
    dog = Watchdog(engine, Times(watchdog_s=0.1), lambda: now_s)
    said: asyncio.Queue[bool] = asyncio.Queue()
    watching = asyncio.create_task(dog.watch(said.put))
    engine.busy_since_s = now_s
    now_s += 1.0
    assert not await asyncio.wait_for(said.get(), 10)
    engine.busy_since_s = None
    assert await asyncio.wait_for(said.get(), 10)
    assert said.empty()
    watching.cancel()


async def test_an_event_loop_that_stands_still_hangs_too() -> None:
    """It cannot say so itself: whoever reports to routers asks from another thread."""
    now_s = 100.0
    dog = Watchdog(Engine(), TIMES, lambda: now_s)

    async def told(well: bool) -> None:
        raise AssertionError(f"well: {well}")

    watching = asyncio.create_task(dog.watch(told))
    await asyncio.sleep(0)
    now_s += LIMIT_S + 0.1
    assert await asyncio.to_thread(dog.is_hung)
    watching.cancel()


def test_an_engine_is_busy_with_steps_events_and_questions_alike() -> None:
    with running(Worker()) as worker:
        worker.runner.gate.clear()
        worker.start(1, [1, 2, 3])
        assert worker.runner.at_gate.wait(10)
        assert worker.loop.busy_since_s is not None
        worker.runner.gate.set()
        assert worker.last_word(1) is None

        asked, go_on = threading.Event(), threading.Event()

        def question() -> bool:
            asked.set()
            return go_on.wait(10)

        answer = worker.loop.ask(question)
        assert asked.wait(10)
        assert worker.loop.busy_since_s is not None
        go_on.set()
        assert answer.result(10)
