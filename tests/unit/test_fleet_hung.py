"""The workers as a router follows them, with a worker that says only what the test has it say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from baton.errors import DeadlineExceeded, Unavailable
from baton.rpc.server import Server
from baton.state.base import Report
from baton.state.embedded import EmbeddedState
from baton.types import Role
from baton.v1 import decode_pb2, decode_pb2_grpc
from router.model_wait import ModelWait
from router.models import Models
from router.request import GenerateInput
from router.routing.index import BlockIndex
from router.routing.pools import Pools
from router.workers.fleet import Fleet
from tests.unit.lives import make_worker


class Decode(decode_pb2_grpc.DecodeServicer):
    """Listens, and answers nothing."""

    async def Serve(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in request_iterator:
            if False:
                yield


class Cluster:
    def __init__(self, address: str) -> None:
        self.state = EmbeddedState()
        self.pools = Pools()
        self.fleet = Fleet(self.state, self.pools, BlockIndex(), "r", lambda *_: None)
        self.worker = replace(make_worker("d-0"), address=address)

    async def says(self, *, hung: bool = False) -> None:
        await self.state.report(Report(self.worker, hung=hung))

    @property
    def is_taken(self) -> bool:
        return bool(self.fleet.connected(Role.DECODE, "m"))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    server = Server()
    server.add_background(decode_pb2_grpc.add_DecodeServicer_to_server, Decode())
    async with server, following(Cluster(server.address)) as cluster:
        yield cluster


@asynccontextmanager
async def following(cluster: Cluster) -> AsyncIterator[Cluster]:
    task = asyncio.create_task(cluster.fleet.run())
    try:
        yield cluster
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(cluster: Cluster, condition: Callable[[], bool]) -> None:
    while not condition():
        assert await cluster.fleet.wait_for_change(10)


async def test_a_worker_that_says_it_hangs_is_dead_until_it_goes_on(cluster: Cluster) -> None:
    await cluster.says()
    await until(cluster, lambda: cluster.is_taken)
    [pool] = cluster.pools.of(Role.DECODE, "m")
    leg = cluster.fleet.start(pool, decode_pb2.Start())
    await cluster.says(hung=True)
    with pytest.raises(Unavailable):
        await asyncio.wait_for(leg.take(), 10)
    await until(cluster, lambda: not cluster.pools.models())
    [member] = cluster.state.snapshot()
    assert member.hung, "operators see it"
    await cluster.says()
    await until(cluster, lambda: cluster.is_taken)


async def test_a_worker_that_registers_while_it_hangs_is_not_taken(cluster: Cluster) -> None:
    await cluster.says(hung=True)
    await cluster.says()
    await until(cluster, lambda: cluster.is_taken)


async def test_a_request_waits_for_the_first_worker_of_its_model(cluster: Cluster) -> None:
    wait = ModelWait(Models({}, cluster.pools), cluster.fleet, wait_s=10, max_waiting=1)
    now_s = time.monotonic()
    asked = asyncio.create_task(wait.get(GenerateInput((1,)), now_s))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await wait.get(GenerateInput((1,)), now_s)  # no more than `max_waiting` wait
    await cluster.says()
    assert (await asyncio.wait_for(asked, 10)).name == "m"


async def test_a_request_waits_for_its_models_worker_to_come_back(cluster: Cluster) -> None:
    models = Models({}, cluster.pools)
    wait = ModelWait(models, cluster.fleet, wait_s=10, max_waiting=1)
    await cluster.says()
    await until(cluster, lambda: cluster.is_taken)
    assert models.get("m")
    await cluster.state.leave("d-0", 1, "drained")
    await until(cluster, lambda: not cluster.pools.models())
    now_s = time.monotonic()
    asked = asyncio.create_task(wait.get(GenerateInput((1,), model="m"), now_s))
    await asyncio.sleep(0)
    await cluster.says()
    assert (await asyncio.wait_for(asked, 10)).name == "m"


async def test_it_does_not_wait_for_ever(cluster: Cluster) -> None:
    wait = ModelWait(Models({}, cluster.pools), cluster.fleet, wait_s=0.01, max_waiting=1)
    now_s = time.monotonic()
    with pytest.raises(Unavailable):
        await wait.get(GenerateInput((1,)), now_s)
    with pytest.raises(DeadlineExceeded):
        await wait.get(GenerateInput((1,), timeout_s=0.001), now_s)
