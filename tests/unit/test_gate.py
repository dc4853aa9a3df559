"""The door's waiting: whoever gives up, at whatever instant, leaves no place taken."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from baton.errors import DeadlineExceeded, Overloaded
from baton.prefill_cost import PrefillCost
from router.admission.admission import AdmissionSettings, Ask
from router.admission.capacity import Capacity
from router.gate import Gate, Place


def one_at_a_time(max_waiting: int, **settings: float) -> Gate:
    return Gate(AdmissionSettings(max_in_flight_per_pool=1, max_waiting=max_waiting, **settings))  # type: ignore[arg-type]


async def hold(gate: Gate, until: asyncio.Event, priority: int = 0, model: str = "m") -> None:
    async with gate.place(model, Ask(priority)):
        await until.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_cancelled_in_the_instant_of_its_admission() -> None:
    gate, end = one_at_a_time(max_waiting=4), asyncio.Event()
    first = asyncio.create_task(hold(gate, end))
    await settle()
    second, third = (asyncio.create_task(hold(gate, end)) for _ in range(2))
    await settle()
    end.set()
    second.cancel()  # the first wakes up before it, ends, and admits it
    await asyncio.wait((first, second, third), timeout=5)
    assert second.cancelled()
    assert first.exception() is None
    assert third.exception() is None
    assert (gate.num_in_flight, gate.num_waiting) == (0, 0)


async def test_refused_in_the_instant_of_being_cancelled() -> None:
    gate, end = one_at_a_time(max_waiting=1), asyncio.Event()
    first, second = (asyncio.create_task(hold(gate, end)) for _ in range(2))
    await settle()
    urgent = asyncio.create_task(hold(gate, end, priority=1))
    second.cancel()  # the urgent one starts before it wakes up, and displaces it
    await settle()
    end.set()
    await asyncio.wait((first, second, urgent), timeout=5)
    assert urgent.exception() is None
    assert (gate.num_in_flight, gate.num_waiting) == (0, 0)


async def test_a_deadline_ends_the_waiting_and_a_full_queue_refuses_at_once() -> None:
    gate, end = one_at_a_time(max_waiting=1), asyncio.Event()
    first, second = (asyncio.create_task(hold(gate, end)) for _ in range(2))
    await settle()
    with pytest.raises(Overloaded) as refused:
        async with gate.place("m", Ask()):
            pass
    assert refused.value.retry_after_s > 0
    second.cancel()
    with suppress(asyncio.CancelledError):
        await second
    gate.doors["m"].admission.service_s = 0.0  # nobody foresees that the first goes on
    with pytest.raises(DeadlineExceeded):
        async with gate.place("m", Ask(deadline_s=time.monotonic() + 0.01)):
            pass
    end.set()
    await first
    assert (gate.num_in_flight, gate.num_waiting) == (0, 0)


async def test_a_computed_prompt_lets_the_next_one_in() -> None:
    gate = Gate(AdmissionSettings(max_outstanding_s=1.0))
    gate.resize("m", Capacity(1, 1, PrefillCost.at_rate(100.0)))
    ask, places = Ask(work_s=gate.work_s("m", 200)), asyncio.Queue[Place]()
    end = asyncio.Event()

    async def request() -> None:
        async with gate.place("m", ask) as place:
            places.put_nowait(place)
            await end.wait()

    requests = [asyncio.create_task(request()) for _ in range(3)]
    await settle()
    assert (gate.num_in_flight, gate.num_waiting) == (1, 2)
    places.get_nowait().computed()
    await settle()
    assert (gate.num_in_flight, gate.num_waiting) == (2, 1)
    gate.resize("m", Capacity(1, 2, PrefillCost.at_rate(100.0)))  # another worker
    await settle()
    assert (gate.num_in_flight, gate.num_waiting) == (2, 1)  # 2 s are outstanding, 2 s is the limit
    places.get_nowait().computed()
    await settle()
    assert (gate.num_in_flight, gate.num_waiting) == (3, 0)
    end.set()
    await asyncio.wait(requests)
    assert gate.num_in_flight == 0


async def test_models_have_doors_of_their_own_and_one_quota() -> None:
    gate, end = one_at_a_time(max_waiting=0), asyncio.Event()
    held = [asyncio.create_task(hold(gate, end, model=model)) for model in ("a", "b")]
    await settle()
    assert gate.num_in_flight == 2
    with pytest.raises(Overloaded, match="queue is full"):
        async with gate.place("a", Ask()):
            pass
    end.set()
    await asyncio.wait(held)

    gate = Gate(AdmissionSettings(quotas=("acme=10",), quota_burst_s=1.0))
    gate.spend("acme", 100)
    for model in ("a", "b"):
        with pytest.raises(Overloaded, match="quota"):
            async with gate.place(model, Ask(tenant="acme")):
                pass
    async with gate.place("a", Ask(tenant="other")):
        assert gate.num_in_flight == 1
