"""The streams of decode workers. Of one incarnation of a decode worker only the latest is served.

A decode worker that lost its stream opens another, perhaps before this side has noticed. The Welcome of
the later one is the proof that nothing is written any more for what the earlier ones had asked, so it
waits here until that is true, and commands that are still under way on the earlier ones go unheard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from baton.errors import BatonError, Unavailable
from baton.rpc.outgoing import BoundedOutgoing
from baton.v1 import prefill_pb2
from prefill_worker.messages import ReaderId

Outgoing = BoundedOutgoing[prefill_pb2.PrefillEvent]


@dataclass(slots=True, eq=False)
class Stream:
    """`cut_off` is called where the reader has left too much of `outgoing` unread.
    `fenced` is set once nothing is written any more for what was asked on it."""

    reader: ReaderId
    cut_off: Callable[[Stream], None] = lambda stream: None
    outgoing: Outgoing = field(init=False)
    reading: asyncio.Task[None] | None = None
    peer: tuple[str, int] | None = None  # decode worker and incarnation, once it has said hello
    number: int = 0
    welcome: bool = False
    is_over: bool = False
    fenced: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.outgoing = Outgoing(prefill_pb2.PrefillEvent.ByteSize, lambda: self.cut_off(self))

    def hang_up(self, error: BatonError) -> None:
        """Ends the call; no command of it is heard from here on."""
        if self.reading is not None:
            self.reading.cancel()
        self.outgoing.end(error)


class Streams:
    """All streams that are not fenced yet. On the event loop."""

    def __init__(self) -> None:
        self._streams: dict[ReaderId, Stream] = {}

    def add(self, stream: Stream) -> None:
        self._streams[stream.reader] = stream

    def get(self, reader: ReaderId) -> Stream | None:
        """The stream of `reader` while it can be told something."""
        stream = self._streams.get(reader)
        return stream if stream is not None and stream.welcome else None

    def outgoing(self) -> Iterator[Outgoing]:
        """Of all that can be told something."""
        return (stream.outgoing for stream in self._streams.values() if stream.welcome)

    async def replace(self, stream: Stream, hello: prefill_pb2.PrefillHello) -> None:
        """Makes `stream` its decode worker's only one: the earlier ones end, and are fenced when this
        returns. Unavailable where a later one has come first."""
        stream.peer, stream.number = (hello.worker_id, hello.incarnation), hello.stream
        others = [
            each for each in self._streams.values() if each.peer == stream.peer and each != stream
        ]
        if any(each.number >= stream.number for each in others):
            raise Unavailable("a later stream of the same decode worker has come")
        for earlier in others:
            earlier.hang_up(Unavailable("a later stream of the same decode worker has come"))
        for earlier in others:
            await earlier.fenced.wait()

    async def fence(self, stream: Stream, closing: Awaitable[None]) -> None:
        """The call is over; `closing` is done when nothing is written for it any more."""
        stream.welcome = False
        await closing
        stream.fenced.set()
        del self._streams[stream.reader]
