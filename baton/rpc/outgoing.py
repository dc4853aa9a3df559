"""What is said on a call that streams: put in by anybody on the event loop, read by gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from baton.errors import BatonError, Overloaded

log = logging.getLogger(__name__)

Message = TypeVar("Message")

MAX_UNREAD_BYTES = 64 << 20  # that a peer of ours may leave unread


class Outgoing(Generic[Message]):
    """The messages of one call, in order, for as long as it lasts. gRPC does not end whom it reads from:
    whoever made the call calls `end` when it is over, or a reader waits for ever."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._error: BatonError | None = None
        self._is_writing = False  # the message that was read last
        self.is_over = False

    def put(self, message: Message) -> None:
        """Nothing is said any more once it is over."""
        if not self.is_over:
            self._queue.put_nowait(message)

    def end(self, error: BatonError | None = None) -> None:
        """After what was put in before, the reader gets the end of the messages, or `error`. The first end
        counts."""
        if not self.is_over:
            self.is_over, self._error = True, error
            self._queue.put_nowait(None)

    async def written(self) -> None:
        """Waits until all there is has been written: who reads asks for more only then."""
        await self._queue.join()

    def __aiter__(self) -> Outgoing[Message]:
        return self

    async def __anext__(self) -> Message:
        if self._is_writing:
            self._is_writing = False
            self._queue.task_done()
        message = await self._queue.get()
        self._is_writing = True
        if message is not None:
            return message
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


class BoundedOutgoing(Outgoing[Message]):
    """Whose reader may leave `max_unread_bytes` unread, by what `size_of` says of each message. One that
    leaves more is cut off: all of it is dropped, `cut_off` is called once, and what it reads next is
    Overloaded. So a peer that stands still costs a bounded amount of memory, for however long."""

    def __init__(
        self,
        size_of: Callable[[Message], int],
        cut_off: Callable[[], None] = lambda: None,
        max_unread_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self._size_of = size_of
        self._cut_off = cut_off
        self._max_unread_bytes = max_unread_bytes or MAX_UNREAD_BYTES
        self._num_unread_bytes = 0
        self._sizes: deque[int] = deque()

    def put(self, message: Message) -> None:
        if self.is_over:
            return
        self._sizes.append(self._size_of(message))
        self._num_unread_bytes += self._sizes[-1]
        super().put(message)
        if self._num_unread_bytes > self._max_unread_bytes:
            log.warning("a peer left %d bytes unread and is cut off", self._num_unread_bytes)
            while not self._queue.empty():
                self._queue.get_nowait()
                self._queue.task_done()
            self.end(Overloaded("too much was left unread on this stream"))
            self._cut_off()

    async def __anext__(self) -> Message:
        message = await super().__anext__()
        self._num_unread_bytes -= self._sizes.popleft()
        return message
