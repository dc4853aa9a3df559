"""Many requests of one client on one stream: what they have to say is gathered, and leaves together.

    client ==SessionStart, SessionCancel==> Session ── a task per request ──> dispatcher
    client <==SessionResponse============== Session <── updates, gathered while the last one is written

A message carries what there is when the one before it has left, and a request is asked for more only
then: one token of one request when little happens, and when the router is busy many tokens of many. It
knows neither workers nor tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing

from baton import convert
from baton.errors import BatonError, Cancelled, Internal, InvalidArgument
from baton.rpc.context import TRACEPARENT, traceparent
from baton.v1 import inference_pb2
from router.frontend import Frontend
from router.grpc.request_reader import RequestReader
from router.grpc.wire import response

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 1 << 20
_MAX_PAUSE_S = 0.02

Counted = Callable[[], AbstractContextManager[None]]


class Session:
    """One client's stream. `counted` is entered for every request while it lasts, and refuses it by
    raising."""

    def __init__(self, frontend: Frontend, reader: RequestReader, counted: Counted) -> None:
        self._frontend = frontend
        self._reader = reader
        self._counted = counted
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._updates: list[inference_pb2.SessionUpdate] = []
        self._news = asyncio.Event()
        self._news_s = 0.0  # when the first of `_updates` came
        self._turn = asyncio.Event()  # the updates before have left

    async def serve(
        self, messages: AsyncIterator[inference_pb2.SessionRequest]
    ) -> AsyncGenerator[inference_pb2.SessionResponse]:
        """Until the client has said its last word and every request has had its own. Closed earlier, all
        requests are cancelled."""
        reader = asyncio.create_task(self._read(messages), name="session")
        reader.add_done_callback(lambda _: self._news.set())
        try:
            while not (reader.done() and not self._requests and not self._updates):
                await self._news.wait()
                self._news.clear()
                if reader.done():
                    reader.result()  # what it could not understand ends the stream
                for updates in self._gathered():
                    yield inference_pb2.SessionResponse(updates=updates)
                await self._pause()
                self._turn.set()
                self._turn.clear()
        finally:
            tasks = [reader, *self._requests.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _gathered(self) -> Iterator[Sequence[inference_pb2.SessionUpdate]]:
        """All there is, in messages that are not too large for the client."""
        updates, self._updates = self._updates, []
        first, size_bytes = 0, 0
        for index, update in enumerate(updates):
            size_bytes += update.ByteSize()
            if size_bytes > _MESSAGE_BYTES:
                yield updates[first : index + 1]
                first, size_bytes = index + 1, 0
        if first < len(updates):
            yield updates[first:]

    async def _pause(self) -> None:
        """As long as it took to gather and write: half of the time is for what workers say, of which the
        next messages then carry the more. Nothing to speak of where little happens."""
        took_s = asyncio.get_running_loop().time() - self._news_s
        await asyncio.sleep(min(took_s, _MAX_PAUSE_S))

    async def _read(self, messages: AsyncIterator[inference_pb2.SessionRequest]) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "start":
                    self._start(message.start)
                case "cancel":
                    if task := self._requests.get(message.cancel.key):
                        task.cancel()
                case _:
                    raise InvalidArgument("one of start or cancel is needed", field="message")

    def _start(self, start: inference_pb2.SessionStart) -> None:
        if start.key in self._requests:
            raise InvalidArgument(f"{start.key} names a request that still runs", field="start.key")
        task = asyncio.create_task(self._run(start), name=start.request.request_id)
        task.add_done_callback(lambda ended: self._ended(start.key, ended))
        self._requests[start.key] = task

    async def _run(self, start: inference_pb2.SessionStart) -> None:
        key = start.key
        try:
            with self._counted():
                trace = traceparent({TRACEPARENT: start.traceparent})
                asked = await self._reader.read(start.request, start.timeout_s or None, trace)
                async with aclosing(self._frontend.generate(asked)) as updates:
                    async for update in updates:
                        self._put(key, response(update))
                        await self._turn.wait()
        except BatonError as error:
            self._put_error(key, error)
        except Exception as error:
            log.exception("request %s failed", start.request.request_id)
            self._put_error(key, Internal(f"{type(error).__name__}; the router's log has the rest"))

    def _ended(self, key: int, task: asyncio.Task[None]) -> None:
        """Also where it was cancelled before it had begun."""
        del self._requests[key]
        if task.cancelled():
            self._put_error(key, Cancelled("by the client"))
        self._news.set()

    def _put_error(self, key: int, error: BatonError) -> None:
        self._updates.append(
            inference_pb2.SessionUpdate(key=key, error=convert.error_to_proto(error))
        )

    def _put(self, key: int, message: inference_pb2.GenerateResponse) -> None:
        if not self._updates:
            self._news_s = asyncio.get_running_loop().time()
            self._news.set()
        self._updates.append(inference_pb2.SessionUpdate(key=key, response=message))
