"""A peer that does not read costs a bounded amount of memory, is cut off, and begins anew. Real gRPC."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from baton import convert, kv_records
from baton.errors import BatonError, Overloaded
from baton.rpc import outgoing
from baton.rpc.outgoing import BoundedOutgoing
from baton.rpc.status import from_rpc_error
from baton.types import BlockId, PoolId
from baton.v1 import (
    decode_pb2,
    decode_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from baton.worker.kv_events import KvEventLog
from baton.worker.service import WorkerService
from decode_worker import messages as decode_messages
from decode_worker.messages import Outbox
from decode_worker.service import DecodeService
from prefill_worker import messages as prefill_messages
from prefill_worker.service import PrefillService
from tests.unit.test_messages_not_understood import NoBorrower, NoPusher, served, until

POOL = PoolId("w")
LIMIT_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second's worth instead of 64 MiB."""
    monkeypatch.setattr(outgoing, "MAX_UNREAD_BYTES", LIMIT_BYTES)


async def test_what_is_cut_off_is_dropped_and_ends_with_an_error() -> None:
    cut_off: list[str] = []
    queue = BoundedOutgoing[bytes](len, lambda: cut_off.append("once"), max_unread_bytes=10)
    for _ in range(3):
        queue.put(b"12345")
        queue.put(b"67890")
        assert [await anext(queue), await anext(queue)] == [b"12345", b"67890"]  # all is read
    for _ in range(5):
        queue.put(b"12345")
    queue.end()
    assert cut_off == ["once"]
    with pytest.raises(Overloaded):
        await anext(queue)


class Blocks:
    """The part of a block manager that is asked here."""

    def __init__(self) -> None:
        self.published: list[BlockId] = []
        self._changes: deque[tuple[bool, BlockId]] = deque()

    def publish(self, num_blocks: int) -> None:
        for _ in range(num_blocks):
            block_id = BlockId(len(self.published).to_bytes(16, "big"))
            self.published.append(block_id)
            self._changes.append((True, block_id))

    def take_changes(self) -> list[tuple[bool, BlockId]]:
        changes = list(self._changes)
        self._changes.clear()
        return changes


class Hosted:
    """A worker that has a cache and nothing else; its engine's thread is the event loop's."""

    pool_id = POOL
    incarnation = 1

    def __init__(self) -> None:
        blocks: Any = Blocks()
        self.blocks: Blocks = blocks
        self.kv_events = KvEventLog(blocks, asyncio.get_running_loop())

    async def ask(self, question: Callable[[], Any]) -> Any:
        return question()


class Follower:
    """Knows of a pool what it was told."""

    def __init__(self) -> None:
        self.known: set[BlockId] = set()
        self._next_number: int | None = None

    def apply(self, batch: worker_pb2.KvEventBatch) -> None:
        assert batch.snapshot == (self._next_number is None)
        assert self._next_number in (None, batch.first_number)
        self._next_number = batch.first_number + batch.count
        for _, block_ids in kv_records.decode(batch.records):
            self.known.update(block_ids)


async def refused_by(call: Any, read: Callable[[Any], object] = lambda message: None) -> BatonError:
    """Reads a call to its end, which must be an error."""
    try:
        async for message in call:
            read(message)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call ended well")


async def test_who_does_not_follow_kv_events_is_cut_off_and_may_begin_anew() -> None:
    host = Hosted()
    host.blocks.publish(5_000)
    service = WorkerService(host, 0.0)  # type: ignore[arg-type]
    request = worker_pb2.StreamKvEventsRequest(pool=convert.pool_to_proto(POOL))
    async with served(worker_pb2_grpc.add_WorkerServicer_to_server, service) as link:
        call = worker_pb2_grpc.WorkerStub(link).StreamKvEvents(request)
        await until(lambda: bool(host.kv_events._subscribers))
        (subscriber,) = host.kv_events._subscribers
        while not subscriber.is_over:
            host.blocks.publish(1_000)
            host.kv_events.publish()
            await asyncio.sleep(0)
        first, second = Follower(), Follower()
        assert isinstance(await refused_by(call, first.apply), Overloaded)
        await until(lambda: not host.kv_events._subscribers)
        assert len(first.known) < len(host.blocks.published)
        again = worker_pb2_grpc.WorkerStub(link).StreamKvEvents(request)
        while len(second.known) < len(host.blocks.published):
            second.apply(await again.read())
        again.cancel()
    assert second.known == set(host.blocks.published)


async def test_an_empty_pool_has_a_snapshot_too() -> None:
    host = Hosted()
    service = WorkerService(host, 0.0)  # type: ignore[arg-type]
    request = worker_pb2.StreamKvEventsRequest(pool=convert.pool_to_proto(POOL))
    async with served(worker_pb2_grpc.add_WorkerServicer_to_server, service) as link:
        batch = await worker_pb2_grpc.WorkerStub(link).StreamKvEvents(request).read()
        assert (batch.snapshot, kv_records.decode(batch.records)) == (True, [])


async def for_ever(first: Any) -> AsyncIterator[Any]:
    yield first
    await asyncio.Event().wait()


async def test_a_router_that_does_not_read_is_lost_to_its_decode_worker() -> None:
    heard: list[decode_messages.Event] = []
    service = DecodeService()
    service.post, service.incarnation = heard.append, 1
    hello = decode_pb2.RouterMessage(hello=decode_pb2.Hello(router_id="r"))
    async with served(decode_pb2_grpc.add_DecodeServicer_to_server, service) as link:
        call = decode_pb2_grpc.DecodeStub(link).Serve(for_ever(hello))
        await until(lambda: bool(service._outgoing))
        step = Outbox(keys=[1] * 10_000, token_ids=[7] * 10_000)
        while not heard:  # at once, though what it was sent before cannot be written
            service.send({1: step})
            await asyncio.sleep(0)
        assert heard == [decode_messages.RouterLost(1)]
        assert not service._outgoing
        assert isinstance(await refused_by(call), Overloaded)
    assert heard == [decode_messages.RouterLost(1)]


async def test_a_decode_worker_that_does_not_read_is_lost_to_its_prefill_worker() -> None:
    heard: list[prefill_messages.Event] = []
    nobody: Any = None
    service = PrefillService(nobody)
    service.post = heard.append
    service.pusher, service.borrower = NoPusher(), NoBorrower()  # type: ignore[assignment]
    start = prefill_pb2.PrefillCommand(cancel=prefill_pb2.PrefillCancel(attempt=1))
    sent = prefill_pb2.PrefillEvent(blocks_sent=prefill_pb2.BlocksSent(checksums=[2**63] * 1_000))
    async with served(prefill_pb2_grpc.add_PrefillServicer_to_server, service) as link:
        call = prefill_pb2_grpc.PrefillStub(link).Prefill(for_ever(start))
        await until(lambda: len(heard) == 1)
        ((reader, stream),) = service._streams._streams.items()
        stream.welcome = True
        while len(heard) == 1:
            service.tell(reader, sent)
            await asyncio.sleep(0)
        assert heard[1:] == [prefill_messages.ReaderLost(reader)]
        assert isinstance(await refused_by(call), Overloaded)
    assert heard[1:] == [prefill_messages.ReaderLost(reader)]
