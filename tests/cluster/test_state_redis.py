"""Cluster state in a real Redis: workers write themselves in, routers read them, and Redis may die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from baton.config import Times
from baton.errors import BatonError, ConfigError, InvalidArgument
from baton.state.base import Change, InFlight, Joined, Left, Report, RouterReport, Updated
from baton.state.choose import open_state
from baton.state.redis import RedisState
from baton.state.registration import Registration
from baton.state.registries import RedisRegistry, registries
from baton.types import PoolId
from tests.cluster.watching import eventually
from tests.redis_server import RedisServer
from tests.reports import report

QUICK = Times(worker_lease_s=0.6, report_interval_s=0.1)
FADE_S = 0.7  # longer than any lease


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@asynccontextmanager
async def router(server: RedisServer) -> AsyncIterator[RedisState]:
    """The state as one router has it."""
    state = RedisState(server.url, QUICK)
    running = asyncio.create_task(state.run())
    try:
        yield state
    finally:
        running.cancel()
        await asyncio.wait([running])


@asynccontextmanager
async def worker(server: RedisServer, how: Callable[[], Report]) -> AsyncIterator[None]:
    registration = Registration(registries((), server.url, QUICK), how, QUICK)
    registration.start()
    try:
        yield
    finally:
        await asyncio.to_thread(registration.stop)


async def next_change(watch: AsyncIterator[Change]) -> Change:
    return await asyncio.wait_for(anext(watch), 10)


async def quiet_for(state: RedisState, seconds: float) -> None:
    """Of those alive nothing but new loads is heard for so long, and of nobody else."""
    watch = state.watch()
    for _ in alive(state):
        await anext(watch)

    async def listen() -> None:
        async for change in watch:
            assert isinstance(change, Updated)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listen(), seconds)


def alive(state: RedisState) -> list[str]:
    return [member.info.worker_id for member in state.snapshot()]


async def test_every_router_sees_a_worker_that_knows_none_of_them(server: RedisServer) -> None:
    async with router(server) as first, router(server) as second:
        watches = [first.watch(), second.watch()]
        current = report("d0")
        async with worker(server, lambda: current):
            for watch in watches:
                joined = await next_change(watch)
                assert isinstance(joined, Joined)
                assert (joined.member.info, joined.member.loads) == (current.info, current.loads)
            await quiet_for(first, 2 * QUICK.worker_lease_s)  # renewed all the while
            current = report("d0", num_running=3)
            updated = await next_change(watches[1])
            assert isinstance(updated, Updated)
            assert updated.member.loads[0].num_running_requests == 3
        while isinstance(change := await next_change(watches[0]), Updated):
            pass  # it drains
        assert isinstance(change, Left)
        assert change.reason == "drained"
        assert alive(first) == []


async def test_a_worker_that_died_leaves_with_its_lease(server: RedisServer) -> None:
    async with router(server) as state:
        watch = state.watch()
        await state.report(report("d0"))  # once, and never again
        assert isinstance(await next_change(watch), Joined)
        left = await next_change(watch)
        assert isinstance(left, Left)
        assert "not heard of" in left.reason


async def test_routing_goes_on_while_redis_is_gone_and_after_it_comes_back_empty(
    server: RedisServer,
) -> None:
    async with router(server) as state, worker(server, lambda: report("d0")):
        watch = state.watch()
        assert isinstance(await next_change(watch), Joined)
        server.kill()
        await quiet_for(state, 3 * QUICK.worker_lease_s)
        assert alive(state) == ["d0"]
        server.start()
        async with worker(server, lambda: report("d1")):
            joined = await next_change(watch)  # and d0 never left
            assert isinstance(joined, Joined)
            assert joined.member.info.worker_id == "d1"
            await quiet_for(state, 2 * QUICK.worker_lease_s)
            assert alive(state) == ["d0", "d1"]


async def test_who_died_while_redis_was_gone_leaves_once_it_is_back(server: RedisServer) -> None:
    async with router(server) as state, worker(server, lambda: report("d1")):
        watch = state.watch()
        await state.report(report("d0"))
        assert {(await next_change(watch)).member.info.worker_id for _ in range(2)} == {"d0", "d1"}
        server.kill()
        await asyncio.sleep(2 * QUICK.worker_lease_s)
        assert alive(state) == ["d0", "d1"]
        server.start()
        left = await next_change(watch)
        assert isinstance(left, Left)
        assert left.member.info.worker_id == "d0"
        await quiet_for(state, QUICK.worker_lease_s)


async def test_an_older_incarnation_is_refused_and_a_younger_one_replaces(
    server: RedisServer,
) -> None:
    async with router(server) as state:
        watch = state.watch()
        await state.report(report("d0", incarnation=2))
        with pytest.raises(InvalidArgument, match="alive as incarnation 2") as refused:
            await state.report(report("d0", incarnation=1))
        assert refused.value.field == "info.incarnation"
        assert isinstance(await next_change(watch), Joined)
        await state.report(report("d0", incarnation=3))
        assert isinstance(await next_change(watch), Left)
        joined = await next_change(watch)
        assert joined.member.info.incarnation == 3


def told(router_id: str, num_requests: int) -> RouterReport:
    return RouterReport(
        router_id, {PoolId("d0", 1): InFlight(num_requests, 640)}, {"acme": 12.5 * num_requests}
    )


async def test_routers_tell_each_other_and_forget_who_is_gone(server: RedisServer) -> None:
    async with router(server) as first, router(server) as second:
        assert await first.exchange(told("r0", 1)) == ()
        assert await second.exchange(told("r1", 2)) == (told("r0", 1),)
        assert await first.exchange(told("r0", 3)) == (told("r1", 2),)
        await asyncio.sleep(FADE_S)  # r1 says no more
        assert await first.exchange(told("r0", 3)) == ()


async def test_what_others_have_in_flight_fades_while_redis_is_gone(server: RedisServer) -> None:
    async with router(server) as first, router(server) as second:
        await second.exchange(told("r1", 2))
        assert await first.exchange(told("r0", 1)) == (told("r1", 2),)
        server.kill()
        await eventually(lambda: first.exchange(told("r0", 1)), lambda others: others == ())
        server.start()

        async def both() -> tuple[RouterReport, ...]:
            await second.exchange(told("r1", 4))
            return tuple(await first.exchange(told("r0", 1)))

        await eventually(both, lambda others: others == (told("r1", 4),))


async def test_nothing_stays_in_redis(server: RedisServer) -> None:
    async with router(server) as state:
        for index in range(20):
            await state.report(report(f"d{index}"))
        await state.exchange(told("r0", 1))
        with server.client() as client:
            assert len(client.keys()) == 23
            assert all(client.pttl(key) > 0 for key in client.scan_iter())
            await asyncio.sleep(FADE_S)
            await state.report(report("d0"))  # the list forgets those that ran out
            assert client.zrange("baton:workers", 0, -1) == [b"d0"]
            assert sorted(client.keys()) == [b"baton:routers", b"baton:worker:d0", b"baton:workers"]


async def test_what_is_no_record_is_passed_over(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with server.client() as client:
        for kind in ("worker", "router"):
            client.zadd(f"baton:{kind}s", {"odd": 9e15, "map": 9e15})
            client.set(f"baton:{kind}:odd", b"\xc1")
            client.set(f"baton:{kind}:map", b"\x80")
    async with router(server) as state:
        watch = state.watch()
        await state.report(report("d0"))
        assert isinstance(await next_change(watch), Joined)
        assert await state.exchange(told("r0", 1)) == ()
        assert alive(state) == ["d0"]
    assert "baton:worker:odd" in caplog.text
    assert "baton:router:map" in caplog.text


async def test_a_worker_waits_for_redis_as_for_a_router(server: RedisServer) -> None:
    server.kill()
    async with worker(server, lambda: report("d0")), router(server) as state:
        await asyncio.sleep(2 * QUICK.report_interval_s)
        assert alive(state) == []
        with pytest.raises(BatonError):
            await state.report(report("d1"))
        watch = state.watch()
        server.start()
        assert isinstance(await next_change(watch), Joined)


def test_what_state_may_be() -> None:
    with pytest.raises(ConfigError, match=r"state: must be 'embedded' or redis://"):
        open_state("postgres://db", QUICK)
    with pytest.raises(ConfigError, match="state"):
        open_state("redis://host:port/x", QUICK)
    assert RedisRegistry("redis://me:secret@db:1/0", QUICK).name == "Redis db:1/0"
