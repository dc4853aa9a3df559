"""Two routers that share a Redis, and workers that know neither: what one router does the other takes
into account, and Redis may die under all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.errors import Overloaded
from tests.cluster.watching import eventually, explained, settled
from tests.redis_server import RedisServer

LONG: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as running:
        yield running


@pytest.fixture
def two_routers(
    checkpoint: Path, temporary_folder: Path, server: RedisServer
) -> Iterator[LocalCluster]:
    with LocalCluster(
        str(checkpoint),
        num_workers=2,
        num_routers=2,
        worker_flags={"num_blocks": 256, "state": server.url, "router": ()},
        router_flags={"state": server.url, "quota": "acme=50"},
    ) as cluster:
        yield cluster


async def num_streams(client: AsyncClient) -> int:
    """How many requests of all routers are in flight, as the client's router reckons with."""
    return sum(each.num_streams for each in (await client.route("hello")).by_decode)


async def test_routers_see_each_others_work_and_survive_redis(
    two_routers: LocalCluster, server: RedisServer
) -> None:
    with explained(two_routers):
        first, second = (AsyncClient(address) for address in two_routers.addresses)
        async with first, second:
            async with AsyncExitStack() as open_streams:
                for _ in range(4):
                    stream = first.stream("hello", **LONG)
                    await open_streams.enter_async_context(stream)
                    assert await stream.receive()
                # The second router has none of its own, but spreads its next one around those.
                await eventually(partial(num_streams, second), lambda seen: seen == 4)
            await eventually(partial(num_streams, second), lambda seen: seen == 0)

            server.kill()
            await asyncio.sleep(6)  # longer than any lease
            for client in (first, second):
                assert sum(worker.connected for worker in await client.workers()) == 2
                assert (await client.generate("hello", max_tokens=1)).token_ids
            server.start()
            two_routers.add_worker(router=(), worker_id="late")
            await asyncio.to_thread(two_routers.wait_ready)
            for client in (first, second):
                assert sum(worker.connected for worker in await client.workers()) == 3
        await settled(two_routers.address)


async def test_a_quota_is_that_of_both_routers(two_routers: LocalCluster) -> None:
    first, second = (AsyncClient(address) for address in two_routers.addresses)
    async with first, second:
        # 50 tokens per second and ten seconds' worth at first: one long answer owes for a while.
        await first.generate("hello", max_tokens=900, ignore_eos=True, tenant="acme")
        for client in (first, second):
            await asyncio.sleep(0.5)
            with pytest.raises(Overloaded, match="quota") as refused:
                await client.generate("hello", max_tokens=1, tenant="acme")
            assert 0 < refused.value.retry_after_s < 30
            assert (await client.generate("hello", max_tokens=1, tenant="other")).token_ids
