"""Many requests on one stream: each has its own end, and none is another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

import pytest

from baton.errors import Draining, InvalidArgument, Overloaded
from baton.v1 import inference_pb2 as pb
from router.grpc.request_reader import RequestReader
from router.grpc.session import Session
from tests.fakes import FakeFrontend


def start(key: int, **options: object) -> pb.SessionRequest:
    request = pb.GenerateRequest(request_id=f"r{key}", text="hi")
    return pb.SessionRequest(start=pb.SessionStart(key=key, request=request, **options))  # type: ignore[arg-type]


def cancel(key: int) -> pb.SessionRequest:
    return pb.SessionRequest(cancel=pb.SessionCancel(key=key))


class Client:
    """The other end: says what the test says, and remembers what each request was told."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[pb.SessionRequest | None] = asyncio.Queue()
        self.messages: list[Sequence[pb.SessionUpdate]] = []
        self.news = asyncio.Event()

    async def requests(self) -> AsyncIterator[pb.SessionRequest]:
        while (request := await self.outgoing.get()) is not None:
            yield request

    def say(self, *requests: pb.SessionRequest | None) -> None:
        for request in requests:
            self.outgoing.put_nowait(request)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not holds():
                self.news.clear()
                await self.news.wait()

    def told(self, key: int) -> list[pb.SessionUpdate]:
        return [update for message in self.messages for update in message if update.key == key]

    def text(self, key: int) -> str:
        return "".join(each.text for update in self.told(key) for each in update.response.deltas)


@asynccontextmanager
async def session(
    frontend: FakeFrontend, counted: AbstractContextManager[None] | None = None
) -> AsyncIterator[tuple[Client, asyncio.Task[None]]]:
    client = Client()
    serving = Session(frontend, RequestReader(frontend), lambda: counted or nullcontext())

    async def listen() -> None:
        async for response in serving.serve(client.requests()):
            client.messages.append(response.updates)
            client.news.set()

    task = asyncio.create_task(listen())
    try:
        yield client, task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_every_request_is_told_its_own() -> None:
    async with session(FakeFrontend()) as (client, ended):
        client.say(start(1), start(2), start(7), None)
        await asyncio.wait_for(ended, 5)
        for key in (1, 2, 7):
            assert client.text(key) == "Hello world"
            assert client.told(key)[0].response.request_id == f"r{key}"
            assert client.told(key)[-1].response.HasField("usage")
    assert len(client.messages) < 3 * 5  # what there is at a time leaves together


async def test_an_error_ends_one_request_and_no_other() -> None:
    frontend = FakeFrontend()
    frontend.error, frontend.error_at = Overloaded("full", retry_after_s=2.0), 1
    async with session(frontend) as (client, _):
        client.say(start(1))
        await client.until(lambda: any(update.HasField("error") for update in client.told(1)))
        error = client.told(1)[-1].error
        assert (error.code, error.message, error.retry_after_s) == ("overloaded", "full", 2.0)
        assert client.text(1) == "Hello"
        frontend.error = None
        client.say(start(2))
        await client.until(lambda: client.text(2) == "Hello world")


async def test_a_defect_is_told_as_internal_and_the_stream_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frontend = FakeFrontend()
    frontend.error, frontend.error_at = RuntimeError("broken"), 0
    async with session(frontend) as (client, ended):
        client.say(start(1), None)
        await asyncio.wait_for(ended, 5)
        assert client.told(1)[-1].error.code == "internal"
    assert "broken" in caplog.text


async def test_a_cancel_reaches_its_request_also_before_it_has_begun() -> None:
    frontend = FakeFrontend()
    frontend.hang_at = 1
    async with session(frontend) as (client, ended):
        client.say(start(1), start(2))
        await frontend.reached.wait()
        client.say(cancel(1), start(3), cancel(3), cancel(99))
        await asyncio.wait_for(frontend.closed.acquire(), 5)
        client.say(cancel(2), None)
        await asyncio.wait_for(ended, 5)
        for key in (1, 2, 3):
            assert client.told(key)[-1].error.code == "cancelled"


async def test_a_client_that_is_gone_cancels_all_it_had() -> None:
    frontend = FakeFrontend()
    frontend.hang_at = 1
    async with session(frontend) as (client, _):
        client.say(start(1), start(2))
        await frontend.reached.wait()
        await client.until(lambda: client.text(1) == client.text(2) == "Hello")
    for _ in range(2):
        await asyncio.wait_for(frontend.closed.acquire(), 5)


async def test_a_key_names_one_request_at_a_time() -> None:
    frontend = FakeFrontend()
    frontend.hang_at = 1
    async with session(frontend) as (client, ended):
        client.say(start(1), start(1))
        with pytest.raises(InvalidArgument, match="still runs") as refused:
            await asyncio.wait_for(ended, 5)
        assert refused.value.field == "start.key"


async def test_a_message_that_says_nothing_is_refused() -> None:
    async with session(FakeFrontend()) as (client, ended):
        client.say(pb.SessionRequest())
        with pytest.raises(InvalidArgument, match="start or cancel"):
            await asyncio.wait_for(ended, 5)


async def test_who_does_not_count_is_not_started() -> None:
    class Refusing(nullcontext[None]):
        def __enter__(self) -> None:
            raise Draining("leaving")

    frontend = FakeFrontend()
    async with session(frontend, Refusing()) as (client, ended):
        client.say(start(1), None)
        await asyncio.wait_for(ended, 5)
        assert client.told(1)[-1].error.code == "draining"
    assert frontend.requests == []


async def test_no_message_is_larger_than_a_client_takes() -> None:
    frontend = FakeFrontend(["x" * 400_000, "end"])
    async with session(frontend) as (client, ended):
        client.say(*(start(key) for key in range(8)), None)
        await asyncio.wait_for(ended, 5)
        for key in range(8):
            assert client.text(key).endswith("end")
        sizes = [sum(update.ByteSize() for update in message) for message in client.messages]
        assert max(sizes) < 2 << 20
        assert sum(sizes) > 8 * 400_000
