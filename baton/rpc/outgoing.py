"""What is said on a call that streams: put in by anybody on the event loop, read by gRPC."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Outgoing(Generic[Message]):
    """The messages of one call, in order, for as long as it lasts. gRPC does not end whom it reads from:
    whoever made the call calls `end` when it is over, or a reader waits for ever."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue()

    def put(self, message: Message) -> None:
        self._queue.put_nowait(message)

    def end(self) -> None:
        self._queue.put_nowait(None)

    def __aiter__(self) -> Outgoing[Message]:
        return self

    async def __anext__(self) -> Message:
        message = await self._queue.get()
        if message is None:
            raise StopAsyncIteration
        return message
