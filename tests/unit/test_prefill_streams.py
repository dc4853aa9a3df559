"""A decode worker's later stream ends the earlier ones, and is welcome only when they are fenced."""

from __future__ import annotations

import asyncio

import pytest

from baton.errors import Unavailable
from baton.v1 import prefill_pb2
from prefill_worker.streams import Stream, Streams


def hello(number: int, worker_id: str = "d0", incarnation: int = 1) -> prefill_pb2.PrefillHello:
    return prefill_pb2.PrefillHello(worker_id=worker_id, incarnation=incarnation, stream=number)


class World:
    def __init__(self) -> None:
        self.streams = Streams()
        self._num_readers = 0

    def open(self) -> Stream:
        """A stream whose call reads commands for ever."""
        self._num_readers += 1
        stream = Stream(self._num_readers)
        stream.reading = asyncio.create_task(asyncio.sleep(3600))
        self.streams.add(stream)
        return stream

    async def welcome(self, stream: Stream, words: prefill_pb2.PrefillHello) -> None:
        await self.streams.replace(stream, words)
        stream.welcome = True


async def test_a_later_stream_waits_until_the_earlier_one_is_fenced() -> None:
    world = World()
    first, second = world.open(), world.open()
    await world.welcome(first, hello(1))
    assert world.streams.get(1) is first
    later = asyncio.create_task(world.welcome(second, hello(2)))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):  # its call ends
        await anext(first.outgoing)
    assert first.reading is not None
    await asyncio.wait([first.reading])
    assert first.reading.cancelled(), "no command of it is heard any more"
    closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    fence = asyncio.create_task(world.streams.fence(first, closing))
    await asyncio.sleep(0.01)
    assert not later.done()
    assert world.streams.get(1) is None
    closing.set_result(None)
    await fence
    await later
    assert world.streams.get(2) is second


async def test_a_third_stream_waits_for_both_before_it() -> None:
    world = World()
    first, second, third = world.open(), world.open(), world.open()
    await world.welcome(first, hello(1))
    waiting = asyncio.create_task(world.welcome(second, hello(2)))
    await asyncio.sleep(0)
    last = asyncio.create_task(world.welcome(third, hello(3)))
    await asyncio.sleep(0)
    waiting.cancel()
    await world.streams.fence(second, asyncio.sleep(0))
    await asyncio.sleep(0.01)
    assert not last.done(), "the first may still write"
    await world.streams.fence(first, asyncio.sleep(0))
    await last


async def test_an_earlier_stream_that_comes_late_is_refused() -> None:
    world = World()
    await world.welcome(world.open(), hello(2))
    with pytest.raises(Unavailable, match="later stream"):
        await world.welcome(world.open(), hello(1))


async def test_other_decode_workers_and_incarnations_are_left_alone() -> None:
    world = World()
    streams = [world.open() for _ in range(3)]
    await world.welcome(streams[0], hello(5))
    await world.welcome(streams[1], hello(1, worker_id="d1"))
    await world.welcome(streams[2], hello(1, incarnation=2))
    assert all(world.streams.get(stream.reader) is stream for stream in streams)
    assert not any(stream.reading.cancelling() for stream in streams if stream.reading)
