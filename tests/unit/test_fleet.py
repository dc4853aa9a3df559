"""What a router tells its decode workers as workers come, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from baton.rpc.server import Server
from baton.state.base import Report
from baton.state.embedded import EmbeddedState
from baton.types import Role, WorkerInfo
from baton.v1 import decode_pb2, decode_pb2_grpc
from router.routing.index import BlockIndex
from router.routing.pools import Pools
from router.workers.fleet import Fleet
from tests.unit.lives import make_worker


class Decode(decode_pb2_grpc.DecodeServicer):
    """A decode worker that only listens; `lose` ends its stream."""

    def __init__(self) -> None:
        self.met: asyncio.Queue[list[tuple[str, int, str]]] = asyncio.Queue()
        self.lose = asyncio.Event()

    async def Serve(
        self, request_iterator: AsyncIterator[decode_pb2.RouterMessage], context: Any
    ) -> AsyncIterator[decode_pb2.DecodeMessage]:
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            await self.lose.wait()
            self.lose.clear()
        finally:
            reading.cancel()
        return
        yield

    async def _read(self, messages: AsyncIterator[decode_pb2.RouterMessage]) -> None:
        async for message in messages:
            if message.WhichOneof("message") == "meet":
                met = [(p.pool.worker_id, p.incarnation, p.address) for p in message.meet.prefill]
                self.met.put_nowait(met)


@asynccontextmanager
async def running(state: EmbeddedState, num_links: int) -> AsyncIterator[tuple[Decode, WorkerInfo]]:
    """A router's fleet, and a decode worker that can register with it."""
    decode = Decode()
    async with Server() as server:
        server.add_background(decode_pb2_grpc.add_DecodeServicer_to_server, decode)
        fleet = Fleet(state, Pools(), BlockIndex(), "r", lambda model, capacity: None, num_links)
        task = asyncio.create_task(fleet.run())
        try:
            yield decode, replace(make_worker("d"), address=server.address)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def prefill(number: int) -> WorkerInfo:
    return replace(make_worker(f"p-{number}", Role.PREFILL), address=f"127.0.0.1:{number + 1}")


async def test_a_decode_worker_hears_of_the_prefill_workers_of_its_model() -> None:
    state = EmbeddedState()
    async with asyncio.timeout(30), running(state, 8) as (decode, info):
        await state.report(Report(prefill(0)))
        await state.report(Report(replace(prefill(9), model="other")))
        await state.report(Report(info))
        assert await decode.met.get() == [("p-0", 1, "127.0.0.1:1")]
        await state.report(Report(prefill(1)))
        assert await decode.met.get() == [("p-1", 1, "127.0.0.1:2")], "only what is new"
        await state.report(Report(replace(prefill(1), incarnation=2)))
        assert await decode.met.get() == [("p-1", 2, "127.0.0.1:2")]
        decode.lose.set()
        assert len(await decode.met.get()) == 2, "on a new stream, all"


@pytest.mark.parametrize("num_links", [0, 2])
async def test_it_hears_of_so_many_only(num_links: int) -> None:
    state = EmbeddedState()
    async with asyncio.timeout(30), running(state, num_links) as (decode, info):
        for number in range(5):
            await state.report(Report(prefill(number)))
        await state.report(Report(info))
        if num_links:
            assert len(await decode.met.get()) == num_links
        await asyncio.sleep(0.1)
        assert decode.met.empty()
