"""Processes of one router hear of each other over their parent's hub, and forget who has gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from baton.errors import Overloaded
from baton.state.base import Crowd, InFlight, RouterReport
from baton.state.neighbours import Hub, NeighbourState
from baton.types import PoolId
from router.admission.admission import AdmissionSettings, Ask
from router.gate import Gate
from router.routing.pools import Pools
from router.workers.exchange import Exchange
from tests.unit.lives import make_worker


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    async with Hub() as hub:
        yield hub


def said_by(router_id: str) -> RouterReport:
    return RouterReport(
        router_id,
        {PoolId("d0", 1): InFlight(3, 640)},
        {"acme": 12.5},
        {"m": Crowd(3, 1.5, 2, 0.5)},
    )


async def close(*states: NeighbourState) -> None:
    """As when their processes end."""
    running = [asyncio.create_task(state.run()) for state in states]
    await asyncio.sleep(0)
    for each in running:
        each.cancel()
    await asyncio.wait(running)


async def test_each_hears_of_all_others_and_of_none_that_is_gone(hub: Hub) -> None:
    first, second, third = (NeighbourState(hub.connect()) for _ in range(3))
    assert await first.exchange(said_by("a")) == []
    assert await second.exchange(said_by("b")) == [said_by("a")]
    assert await third.exchange(said_by("c")) == [said_by("a"), said_by("b")]
    await close(second)
    async with asyncio.timeout(10):
        while await first.exchange(said_by("a")) != [said_by("c")]:
            pass
    again = NeighbourState(hub.connect())  # started again, under the name it had
    assert await again.exchange(said_by("b")) == [said_by("a"), said_by("c")]
    await close(first, third, again)


async def test_what_others_said_fades_where_the_parent_is_gone() -> None:
    clock = Clock()
    async with Hub() as hub:
        first = NeighbourState(hub.connect(), clock=clock)
        second = NeighbourState(hub.connect())
        await second.exchange(said_by("b"))
        assert await first.exchange(said_by("a")) == [said_by("b")]
    clock.ahead_s = 10.0
    assert await first.exchange(said_by("a")) == ()
    await close(first, second)


async def test_processes_share_quotas_places_and_work_in_flight(hub: Hub) -> None:
    settings = AdmissionSettings(quotas=("acme=10",), max_in_flight_per_pool=4)
    gates, pools = [Gate(settings), Gate(settings)], [Pools(), Pools()]
    states = [NeighbourState(hub.connect()) for _ in gates]
    exchanges = [
        Exchange(state, f"r.{number}", pools[number], gates[number])
        for number, state in enumerate(states)
    ]
    for each in pools:
        each.put(make_worker("d0"))

    async def tell() -> None:
        for exchange in (*exchanges, *exchanges):
            await exchange._once()

    await tell()
    (pool,) = pools[0]
    pool.begin()
    gates[0].spend("acme", 1_000)
    admission = gates[0].doors["m"].admission
    for _ in range(4):
        admission.enter(Ask(), 0.0)
    admission.settle(0.0)
    await tell()
    (elsewhere,) = pools[1]
    assert elsewhere.num_streams == 1
    assert gates[1].quotas.spent == {}
    with pytest.raises(Overloaded, match="quota"):
        gates[1].check_quota("acme")
    other = gates[1].doors["m"].admission
    assert (other.elsewhere, other.num_routers) == (Crowd(num_in_flight=4), 2)
    await close(*states)
