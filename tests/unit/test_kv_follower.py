"""A router follows a pool's cache: what it missed, it does not guess."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from baton import kv_records
from baton.rpc.channel import channel
from baton.rpc.server import Server
from baton.types import BlockId, PoolId
from baton.v1 import worker_pb2, worker_pb2_grpc
from router.routing.index import BlockIndex
from router.workers.kv_follower import KvFollower
from tests.cluster.watching import eventually

POOL = PoolId("p")
A, B, C, D = (BlockId(bytes([number]) * 16) for number in range(1, 5))


def batch(
    first_number: int, changes: Sequence[tuple[bool, BlockId]], *, snapshot: bool = False
) -> worker_pb2.KvEventBatch:
    return worker_pb2.KvEventBatch(
        first_number=first_number,
        count=0 if snapshot else len(changes),
        snapshot=snapshot,
        records=kv_records.encode(changes),
    )


class Worker(worker_pb2_grpc.WorkerServicer):
    """Answers each call with the next of `calls`, and then is silent."""

    def __init__(self, *calls: Sequence[worker_pb2.KvEventBatch]) -> None:
        self._calls = list(calls)
        self.all_said = asyncio.Event()

    async def StreamKvEvents(
        self, request: worker_pb2.StreamKvEventsRequest, context: Any
    ) -> AsyncIterator[worker_pb2.KvEventBatch]:
        for each in self._calls.pop(0):
            yield each
        if not self._calls:
            self.all_said.set()
        await asyncio.Event().wait()


def cached(index: BlockIndex) -> set[BlockId]:
    return {each for each in (A, B, C, D) if index.match([each], 64).get(POOL)}


async def follow(worker: Worker, wanted: set[BlockId]) -> None:
    """Until the index holds what is wanted, after all has been said."""
    index = BlockIndex()
    async with asyncio.timeout(30), Server() as server:
        server.add_background(worker_pb2_grpc.add_WorkerServicer_to_server, worker)
        async with channel(server.address) as link:
            following = asyncio.create_task(KvFollower(POOL, link, index).run())
            await worker.all_said.wait()
            await eventually(lambda: asyncio.sleep(0, cached(index)), lambda seen: seen == wanted)
            following.cancel()
            await asyncio.wait([following])
            assert cached(index) == set(), "what is not followed is not known"


async def test_changes_follow_a_snapshot() -> None:
    worker = Worker(  # type: ignore[abstract]
        [
            batch(7, [(True, A), (True, B)], snapshot=True),
            batch(7, [(True, C), (False, A)]),
            batch(9, [(True, D)]),
        ]
    )
    await follow(worker, {B, C, D})


@pytest.mark.parametrize("missed", [10, 8], ids=["a gap", "an overlap"])
async def test_a_gap_in_the_numbers_asks_for_a_new_snapshot(missed: int) -> None:
    worker = Worker(  # type: ignore[abstract]
        [
            batch(7, [(True, A), (True, B)], snapshot=True),
            batch(7, [(True, C), (False, A)]),
            batch(missed, [(True, A)]),  # one change before it was lost, or it comes twice
        ],
        [batch(12, [(True, B), (True, D)], snapshot=True)],
    )
    await follow(worker, {B, D})
