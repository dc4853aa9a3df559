"""One stream to one router, which all requests of a client share.

    AsyncStream --start, cancel--> Session ==SessionRequest===> router
    AsyncStream <--Call.read()---- Session <==SessionResponse== router   many requests' tokens in one

The stream is opened with the first request and again after it was lost; whoever is on it when it breaks
learns why from its call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import count

import grpc

from baton import convert
from baton.errors import BatonError, InvalidArgument, Unavailable
from baton.rpc.channel import MAX_MESSAGE_BYTES
from baton.rpc.outgoing import Outgoing
from baton.rpc.status import from_rpc_error
from baton.v1 import inference_pb2, inference_pb2_grpc


class Call:
    """One request on the session. What is not read is kept: never more than its tokens."""

    def __init__(self, key: int, stream: _Stream) -> None:
        self._key = key
        self._stream = stream
        self._arrived: deque[inference_pb2.GenerateResponse] = deque()
        self._news = asyncio.Event()
        self._error: BatonError | None = None
        self._ended = False

    async def read(self) -> inference_pb2.GenerateResponse | None:
        """The next message; None after the last, and once cancelled. Raises the request's typed error."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        return self._arrived.popleft()

    def cancel(self) -> None:
        if not self._ended:
            self._stream.cancel(self._key)
            self._arrived.clear()
            self.end(None)

    def arrive(self, message: inference_pb2.GenerateResponse) -> None:
        self._arrived.append(message)
        self._news.set()

    def end(self, error: BatonError | None) -> None:
        self._error, self._ended = error, True
        self._news.set()


class _Stream:
    """One gRPC call, until it breaks."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.is_open = True
        self._calls: dict[int, Call] = {}
        self._keys = count(1)
        self._outgoing = Outgoing[inference_pb2.SessionRequest]()
        self._reader = asyncio.create_task(self._read(channel), name="baton-session")

    def start(self, start: inference_pb2.SessionStart) -> Call:
        start.key = next(self._keys)
        call = self._calls[start.key] = Call(start.key, self)
        self._outgoing.put(inference_pb2.SessionRequest(start=start))
        return call

    def cancel(self, key: int) -> None:
        if self._calls.pop(key, None) is not None and self.is_open:
            cancel = inference_pb2.SessionCancel(key=key)
            self._outgoing.put(inference_pb2.SessionRequest(cancel=cancel))

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.wait([self._reader])

    async def _read(self, channel: grpc.aio.Channel) -> None:
        error: BatonError = Unavailable("the router ended the session")
        try:
            stub = inference_pb2_grpc.InferenceStub(channel)
            async for message in stub.Session(self._outgoing):
                for update in message.updates:
                    self._take(update)
        except grpc.aio.AioRpcError as broken:
            error = from_rpc_error(broken)
        finally:
            self.is_open = False
            self._outgoing.end()
            for call in self._calls.values():
                call.end(error)
            self._calls.clear()

    def _take(self, update: inference_pb2.SessionUpdate) -> None:
        call = self._calls.get(update.key)
        if call is None:
            return  # cancelled here, which the router had not heard yet
        if update.HasField("error"):
            call.end(convert.error_from_proto(update.error))
        else:
            call.arrive(update.response)
            if not update.response.HasField("usage"):
                return
            call.end(None)
        del self._calls[update.key]


class Session:
    """The streams to one router, one after the other. `channel` stays its owner's."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stream: _Stream | None = None

    def start(
        self,
        request: inference_pb2.GenerateRequest,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> Call:
        start = inference_pb2.SessionStart(
            request=request, timeout_s=timeout_s or 0.0, traceparent=traceparent
        )
        # gRPC would refuse it, too, and break the stream for all the others.
        if (size := start.ByteSize() + 16) > MAX_MESSAGE_BYTES:
            raise InvalidArgument(
                f"is larger than max ({size} vs. {MAX_MESSAGE_BYTES})", field="message"
            )
        if self._stream is None or not self._stream.is_open:
            self._stream = _Stream(self._channel)
        return self._stream.start(start)

    async def close(self) -> None:
        if self._stream is not None:
            await self._stream.close()
