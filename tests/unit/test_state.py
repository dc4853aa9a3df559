"""The embedded state, its Registry service and the worker's side of it, over real gRPC."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import grpc
import pytest

from baton import convert, errors
from baton.config import Times
from baton.rpc.channel import channel
from baton.rpc.server import Server, ServerOptions
from baton.rpc.status import from_rpc_error
from baton.state.base import Change, Joined, Left, Report, Updated
from baton.state.embedded import EmbeddedState
from baton.state.leases import LeaseTable
from baton.state.registration import Registration, Told
from baton.state.registries import RouterRegistry
from baton.state.service import RegistryServicer
from baton.v1 import worker_pb2, worker_pb2_grpc
from baton.v1.common_pb2 import WorkerInfo
from tests.reports import report

QUICK = Times(worker_lease_s=0.4, report_interval_s=0.05)


async def next_change(watch: AsyncIterator[Change]) -> Change:
    return await asyncio.wait_for(anext(watch), 10)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_report_looks_at_no_other_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many workers there are: each reports every second."""
    num_looks = 0
    due_s = LeaseTable.next_expiry_s

    def watched(table: LeaseTable) -> float | None:
        nonlocal num_looks
        num_looks += 1
        return due_s.__get__(table)  # type: ignore[no-any-return]

    monkeypatch.setattr(LeaseTable, "next_expiry_s", property(watched))
    state = EmbeddedState()
    for _ in range(2):
        for number in range(50):
            await state.report(report(f"d{number}"))
    assert num_looks == 1


async def test_watch_begins_with_who_is_there_and_follows() -> None:
    state = EmbeddedState()
    assert await state.report(report("d0")) == Times().worker_lease_s
    watch = state.watch()
    await state.report(report("d1"))
    await state.report(report("d1", num_running=1))
    await state.leave("d0", 1, "drained")
    changes = [await next_change(watch) for _ in range(4)]
    assert [type(change) for change in changes] == [Joined, Joined, Updated, Left]
    assert [change.member.info.worker_id for change in changes] == ["d0", "d1", "d1", "d0"]
    assert [member.info.worker_id for member in state.snapshot()] == ["d1"]


async def test_every_watch_sees_everything() -> None:
    state = EmbeddedState()
    watches = [state.watch() for _ in range(3)]
    await state.report(report("d0"))
    for watch in watches:
        assert isinstance(await next_change(watch), Joined)


async def test_dropped_watch_is_forgotten() -> None:
    state = EmbeddedState()
    watch = state.watch()
    assert len(state._queues) == 1
    del watch
    gc.collect()
    assert len(state._queues) == 0


async def test_silent_worker_leaves_by_itself() -> None:
    state = EmbeddedState(QUICK)
    watch = state.watch()
    await state.report(report("d0"))
    assert isinstance(await next_change(watch), Joined)
    left = await next_change(watch)
    assert isinstance(left, Left)
    assert "not heard of" in left.reason
    assert state.snapshot() == []


async def test_router_that_stood_still_gives_its_workers_time() -> None:
    """After a pause of the router itself nobody is declared dead before having had a chance."""
    clock = Clock()
    state = EmbeddedState(QUICK, clock)
    await state.report(report("d0"))
    clock.now_s += 60.0
    await asyncio.sleep(2 * QUICK.worker_lease_s)  # the timer fires, and finds itself late
    assert [member.info.worker_id for member in state.snapshot()] == ["d0"]


class RegistryRouter:
    """A router's state and Registry service on a port that it keeps over restarts."""

    def __init__(self, times: Times = QUICK) -> None:
        self.times = times
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EmbeddedState]:
        state = EmbeddedState(self.times)
        server = Server(ServerOptions(port=self.port))
        server.add_background(
            worker_pb2_grpc.add_RegistryServicer_to_server, RegistryServicer(state, "r0")
        )
        async with server:
            self.port = server.port
            yield state

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def registered(registration: Registration) -> AsyncIterator[None]:
    """Started here, stopped on another thread: the router that it leaves runs on this one."""
    registration.start()
    try:
        yield
    finally:
        await asyncio.to_thread(registration.stop)


async def test_worker_registers_reports_and_leaves() -> None:
    router = RegistryRouter()
    async with router.running() as state:
        watch = state.watch()
        current = report("d0")
        registration = Registration([RouterRegistry(router.address)], lambda: current, QUICK)
        async with registered(registration):
            joined = await next_change(watch)
            assert isinstance(joined, Joined)
            assert (joined.member.info, joined.member.loads) == (current.info, current.loads)
            assert await asyncio.to_thread(registration.wait_registered, 10)
            assert registration.registered() == {router.address}
            await asyncio.sleep(2 * QUICK.worker_lease_s)  # renewed all the while
            current = report("d0", num_running=3)
            updated = await next_change(watch)
            assert isinstance(updated, Updated)
            assert updated.member.loads[0].num_running_requests == 3
        assert isinstance(await next_change(watch), Updated)  # it drains,
        left = await next_change(watch)  # then is gone, long before its lease would end
        assert isinstance(left, Left)
        assert left.reason == "drained"
        assert registration.registered() == frozenset()


async def test_worker_registers_with_every_router_also_with_a_later_one() -> None:
    routers = [RegistryRouter(), RegistryRouter()]
    async with routers[0].running() as first:
        async with routers[1].running():
            pass  # it had a port, and is down when the worker starts
        registries = [RouterRegistry(router.address) for router in routers]
        async with registered(Registration(registries, lambda: report("d0"), QUICK)):
            assert isinstance(await next_change(first.watch()), Joined)
            async with routers[1].running() as second:
                assert isinstance(await next_change(second.watch()), Joined)


async def test_restarted_router_knows_its_workers_again() -> None:
    router = RegistryRouter()
    async with router.running():
        pass
    async with registered(
        Registration([RouterRegistry(router.address)], lambda: report("d0"), QUICK)
    ):
        for _ in range(3):
            async with router.running() as state:
                assert isinstance(await next_change(state.watch()), Joined)


async def test_changed_description_is_sent_in_the_same_call() -> None:
    router = RegistryRouter()
    async with router.running() as state:
        watch = state.watch()
        current = report("d0", incarnation=1)
        async with registered(
            Registration([RouterRegistry(router.address)], lambda: current, QUICK)
        ):
            await next_change(watch)
            current = report("d0", incarnation=2)
            assert isinstance(await next_change(watch), Left)
            joined = await next_change(watch)
            assert joined.member.info.incarnation == 2


async def test_worker_that_cannot_say_how_it_is_leaves_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = False

    def how() -> Report:
        if broken:
            raise RuntimeError("engine lost")
        return report("d0")

    router = RegistryRouter()
    async with router.running() as state:
        watch = state.watch()
        async with registered(Registration([RouterRegistry(router.address)], how, QUICK)):
            await next_change(watch)
            broken = True
            assert isinstance(await next_change(watch), Left)
            broken = False
            assert isinstance(await next_change(watch), Joined)
    errors_logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors_logged
    assert all(record.exc_info for record in errors_logged)


async def test_cut_call_is_no_leaving() -> None:
    router = RegistryRouter(Times())
    async with router.running() as state:
        watch = state.watch()
        async with channel(router.address) as link:
            call = worker_pb2_grpc.RegistryStub(link).Register()
            await call.write(_message(report("d0")))
            await call.read()
            call.cancel()
        assert isinstance(await next_change(watch), Joined)
        await asyncio.sleep(0.2)
        assert [member.info.worker_id for member in state.snapshot()] == ["d0"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (worker_pb2.WorkerReport(), "info"),
        (worker_pb2.WorkerReport(info=WorkerInfo(worker_id="d0")), "info.address"),
    ],
)
async def test_bad_reports_are_refused_by_name(
    message: worker_pb2.WorkerReport, field: str
) -> None:
    router = RegistryRouter()
    async with router.running() as state, channel(router.address) as link:
        call = worker_pb2_grpc.RegistryStub(link).Register()
        await call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        typed = from_rpc_error(refused.value)
        assert type(typed) is errors.InvalidArgument
        assert typed.field == field
        assert state.snapshot() == []


async def test_old_incarnation_is_refused_over_the_wire() -> None:
    router = RegistryRouter()
    async with router.running() as state, channel(router.address) as link:
        await state.report(report("d0", incarnation=2))
        call = worker_pb2_grpc.RegistryStub(link).Register()
        await call.write(_message(report("d0", incarnation=1)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert from_rpc_error(refused.value).field == "info.incarnation"


async def test_grant_echoes_the_workers_clock() -> None:
    router = RegistryRouter()
    async with router.running(), channel(router.address) as link:
        call = worker_pb2_grpc.RegistryStub(link).Register()
        message = _message(report("d0"))
        message.worker_time_s = 12.5
        await call.write(message)
        grant = await call.read()
        assert isinstance(grant, worker_pb2.LeaseGrant)
        assert (grant.router_id, grant.echo_worker_time_s) == ("r0", 12.5)
        assert grant.lease_s == QUICK.worker_lease_s


def test_stopping_what_never_reached_a_router() -> None:
    registration = Registration([RouterRegistry("127.0.0.1:1")], lambda: report("d0"), QUICK)
    registration.stop()  # never started
    with registration:
        assert not registration.wait_registered(0.1)
    registration.stop()  # again


def _message(what: Report) -> worker_pb2.WorkerReport:
    return worker_pb2.WorkerReport(
        info=convert.worker_info_to_proto(what.info),
        loads=[convert.pool_load_to_proto(load) for load in what.loads],
        draining=what.draining,
    )


def test_the_first_failed_try_to_register_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    def note(_record: logging.LogRecord) -> bool:
        told.set()
        return True

    caplog.handler.addFilter(note)
    with Registration([RouterRegistry("127.0.0.1:1")], lambda: report("d0"), Times()):
        assert told.wait(10)
    [first, *_] = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert "127.0.0.1:1" in first.getMessage()


def test_the_same_trouble_is_told_ever_more_seldom() -> None:
    told = Told()
    due_s = [now_s for now_s in range(2000) if told.is_due(now_s)]
    between_s = [later - sooner for sooner, later in pairwise(due_s)]
    assert due_s[0] == 0
    assert between_s == [5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]
