"""The door's waiting: whoever gives up, at whatever instant, leaves no place taken."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from baton.errors import DeadlineExceeded, Overloaded
from router.admission import Admission
from router.gate import Gate


async def hold(gate: Gate, until: asyncio.Event, priority: int = 0) -> None:
    async with gate.place(priority, None):
        await until.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_cancelled_in_the_instant_of_its_admission() -> None:
    gate, end = Gate(Admission(max_in_flight=1, max_waiting=4)), asyncio.Event()
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
    assert (gate.admission.num_in_flight, gate.admission.num_waiting) == (0, 0)


async def test_refused_in_the_instant_of_being_cancelled() -> None:
    gate, end = Gate(Admission(max_in_flight=1, max_waiting=1)), asyncio.Event()
    first, second = (asyncio.create_task(hold(gate, end)) for _ in range(2))
    await settle()
    urgent = asyncio.create_task(hold(gate, end, priority=1))
    second.cancel()  # the urgent one starts before it wakes up, and displaces it
    await settle()
    end.set()
    await asyncio.wait((first, second, urgent), timeout=5)
    assert urgent.exception() is None
    assert (gate.admission.num_in_flight, gate.admission.num_waiting) == (0, 0)


async def test_a_deadline_ends_the_waiting_and_a_full_queue_refuses_at_once() -> None:
    gate, end = Gate(Admission(max_in_flight=1, max_waiting=1)), asyncio.Event()
    first, second = (asyncio.create_task(hold(gate, end)) for _ in range(2))
    await settle()
    with pytest.raises(Overloaded) as refused:
        async with gate.place(0, None):
            pass
    assert refused.value.retry_after_s > 0
    second.cancel()
    with suppress(asyncio.CancelledError):
        await second
    with pytest.raises(DeadlineExceeded):
        async with gate.place(0, 0.001):
            pass
    end.set()
    await first
    assert (gate.admission.num_in_flight, gate.admission.num_waiting) == (0, 0)
