"""One message that makes no sense costs the request that it names, in both directions; the stream goes on.
Real gRPC, and on the other side nothing but what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest

from baton import convert
from baton.block_id import ROOT
from baton.errors import Internal, InvalidArgument, Unavailable
from baton.kv_records import encode
from baton.rpc.channel import channel
from baton.rpc.server import Server
from baton.types import BlockId, PoolId, SamplingParams
from baton.v1 import (
    common_pb2,
    decode_pb2,
    decode_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from decode_worker import messages as decode_messages
from decode_worker.service import DecodeService
from prefill_worker import messages as prefill_messages
from prefill_worker.service import PrefillService
from router.routing.index import BlockIndex
from router.workers.decode_stream import DecodeStream, Leg
from router.workers.kv_follower import KvFollower

WITHIN_S = 10
SAMPLING = convert.sampling_to_proto(SamplingParams(max_tokens=1))


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not is_so():  # noqa: ASYNC110 - what it looks at says nothing
            await asyncio.sleep(0.001)


@asynccontextmanager
async def served(register: Callable[..., None], servicer: Any) -> AsyncIterator[Any]:
    """A channel to a server of `servicer`."""
    server = Server()
    server.add_background(register, servicer)
    await server.start()
    link = channel(server.address)
    try:
        yield link
    finally:
        await link.close(None)
        await server.stop()


async def nothing() -> None:
    pass


class ScriptedDecode(decode_pb2_grpc.DecodeServicer):
    """Says what is put into `says`, and keeps what it hears."""

    def __init__(self) -> None:
        self.says: asyncio.Queue[decode_pb2.DecodeMessage] = asyncio.Queue()
        self.cancelled: list[int] = []

    async def Serve(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            while True:
                yield await self.says.get()
        finally:
            reading.cancel()

    async def _read(self, messages: AsyncIterator[decode_pb2.RouterMessage]) -> None:
        async for message in messages:
            if message.HasField("cancel"):
                self.cancelled.append(message.cancel.key)

    def say(self, **step: Any) -> None:
        outputs = decode_pb2.StepOutputs(**step)
        self.says.put_nowait(decode_pb2.DecodeMessage(step=outputs))


async def tokens_of(leg: Leg, count: int) -> list[int]:
    tokens: list[int] = []
    async with asyncio.timeout(WITHIN_S):
        while len(tokens) < count:
            tokens += [row.token_id for row in (await leg.take()).rows]
    return tokens


async def test_a_router_loses_only_what_it_cannot_understand() -> None:
    worker = ScriptedDecode()
    async with served(decode_pb2_grpc.add_DecodeServicer_to_server, worker) as link:
        stream = DecodeStream("w", "r", nothing)
        running = asyncio.create_task(stream.run(link))
        try:
            await until(lambda: stream.connected)
            one, two, three, four = (stream.start(decode_pb2.Start()) for _ in range(4))
            worker.say(keys=[1, 3], token_ids=[10, 30])
            worker.say(keys=[1, 1], token_ids=[11])  # a short column
            unknown = common_pb2.FinishReason.ValueType(77)
            ended = [
                decode_pb2.SampleFinished(key=2, reason=unknown),
                decode_pb2.SampleFinished(key=4),
            ]
            worker.say(finished_samples=ended, keys=[3], token_ids=[31])
            worker.says.put_nowait(decode_pb2.DecodeMessage())  # of a later version
            worker.say(keys=[1, 3], token_ids=[12, 32])
            assert await tokens_of(three, 3) == [30, 31, 32]
            assert await tokens_of(one, 1) == [10], "and nothing after what was not understood"
            for lost in (one, two, four):
                with pytest.raises(Internal, match="was not understood"):
                    await lost.take()
            await until(lambda: sorted(worker.cancelled) == [1, 2, 4])
            assert stream.connected
        finally:
            running.cancel()


async def test_a_decode_worker_refuses_what_it_cannot_understand() -> None:
    heard: list[decode_messages.Event] = []
    service = DecodeService()
    service.post, service.incarnation = heard.append, 7

    async def words() -> AsyncIterator[decode_pb2.RouterMessage]:
        for start in (
            decode_pb2.Start(key=1, incarnation=7),  # nothing is resolved
            decode_pb2.Start(key=2, incarnation=6, sampling=SAMPLING),
        ):
            yield decode_pb2.RouterMessage(start=start)
        yield decode_pb2.RouterMessage()
        good = decode_pb2.Start(key=3, incarnation=7, sampling=SAMPLING)
        yield decode_pb2.RouterMessage(start=good)
        yield decode_pb2.RouterMessage(clock_probe=decode_pb2.ClockProbe(router_time_s=5.0))
        await asyncio.Event().wait()

    async with served(decode_pb2_grpc.add_DecodeServicer_to_server, service) as link:
        call = decode_pb2_grpc.DecodeStub(link).Serve(words())
        answer = await asyncio.wait_for(call.read(), WITHIN_S)
        assert answer.clock_probe.router_time_s == 5.0
        call.cancel()
    bad, stale, start = heard[:3]
    assert isinstance(bad, decode_messages.Unreadable)
    assert (bad.key[1], type(bad.error), bad.error.field) == (
        1,
        InvalidArgument,
        "sampling.max_tokens",
    )
    assert isinstance(stale, decode_messages.Unreadable)
    assert (stale.key[1], type(stale.error)) == (2, Unavailable)
    assert isinstance(start, decode_messages.Start)
    assert start.key[1] == 3


class NoPusher:
    def remove_reader(self, reader: int) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done


class NoBorrower:
    def remove_reader(self, reader: int) -> None:
        pass

    def lent(self, key: prefill_messages.Key, checksums: Any) -> None:
        raise ZeroDivisionError


async def test_a_prefill_worker_refuses_what_it_cannot_understand() -> None:
    heard: list[prefill_messages.Event] = []
    nobody: Any = None
    service = PrefillService(nobody)
    service.post = heard.append
    service.pusher, service.borrower = NoPusher(), NoBorrower()  # type: ignore[assignment]

    async def words() -> AsyncIterator[prefill_pb2.PrefillCommand]:
        yield prefill_pb2.PrefillCommand(start=prefill_pb2.PrefillStart(attempt=1))
        yield prefill_pb2.PrefillCommand(lent=prefill_pb2.PrefixLent(attempt=2))
        yield prefill_pb2.PrefillCommand()
        good = prefill_pb2.PrefillStart(attempt=3, sampling=SAMPLING)
        yield prefill_pb2.PrefillCommand(start=good)
        await asyncio.Event().wait()

    async with served(prefill_pb2_grpc.add_PrefillServicer_to_server, service) as link:
        call = prefill_pb2_grpc.PrefillStub(link).Prefill(words())
        await until(lambda: len(heard) >= 3)
        assert not call.done()
        call.cancel()
    unresolved, lent, ask = heard[:3]
    assert isinstance(unresolved, prefill_messages.Unreadable)
    assert (unresolved.key[1], unresolved.error.field) == (1, "sampling.max_tokens")
    assert isinstance(lent, prefill_messages.Unreadable)
    assert lent.key[1] == 2
    assert isinstance(ask, prefill_messages.Ask)
    assert ask.key[1] == 3


class ScriptedEvents(worker_pb2_grpc.WorkerServicer):
    """Every call is answered with a snapshot of one block; after the first one comes `bad`."""

    def __init__(self, bad: bytes) -> None:
        self.bad = bad
        self.num_calls = 0

    async def StreamKvEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.num_calls += 1
        block = BlockId(bytes([self.num_calls]) * 16)
        snapshot = encode([(True, block)])
        yield worker_pb2.KvEventBatch(pool=request.pool, snapshot=True, records=snapshot)
        if self.num_calls == 1:
            yield worker_pb2.KvEventBatch(pool=request.pool, count=1, records=self.bad)
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    "bad",
    [b"\xc1", msgpack.packb([[7, [ROOT]]]), msgpack.packb([[1, [3]]]), msgpack.packb(5)],
)
async def test_kv_events_that_make_no_sense_are_asked_for_anew(bad: bytes) -> None:
    worker: Any = ScriptedEvents(bad)  # type: ignore[abstract]
    index, pool = BlockIndex(), PoolId("w")
    async with served(worker_pb2_grpc.add_WorkerServicer_to_server, worker) as link:
        follower = KvFollower(pool, link, index)
        running = asyncio.create_task(follower.run())
        try:
            second = [BlockId(bytes([2]) * 16)]
            await until(lambda: index.match(second, 64).most == 64)
            assert follower.connected
            assert index.match([BlockId(bytes([1]) * 16)], 64).most == 0
        finally:
            running.cancel()
