"""Wraps the handlers of a service, so that each of them only converts, calls and converts.

Around every call: a request that cannot be decoded is refused with the field at fault, a BatonError
becomes its gRPC status, an unexpected exception becomes INTERNAL and is logged, calls are counted
so that a server can drain, and too many open streams are refused. Handlers are coroutines (one
response) or async generators (a stream of them), and read request streams with `async for`.
Cancellation passes untouched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn, TypeAlias

import grpc

from baton import convert, errors
from baton.rpc.requests import Undecodable, deserializer
from baton.rpc.slow_clients import SlowClients
from baton.rpc.status import ERROR_METADATA, from_rpc_error, status_code

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # generic in the type stubs only
Behavior = Callable[[Any, Context], Any]


class Calls:
    """The calls in flight that a server answers for: counted, bounded, and refused once it
    drains. `slow_client_s`: how long a client may leave a response unread; None for no limit."""

    def __init__(self, max_streams: int, slow_client_s: float | None = None) -> None:
        self.max_streams = max_streams
        self.slow_clients = SlowClients(slow_client_s)
        self.num_calls = 0
        self.num_streams = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def one(self, *, stream: bool) -> Iterator[None]:
        """Counts a call while it lasts; raises `Draining` or `Overloaded` instead of starting
        it."""
        if self.draining:
            raise errors.Draining("this process is leaving; any other one serves the request")
        if stream and self.num_streams >= self.max_streams:
            raise errors.Overloaded(
                f"{self.num_streams} streams are open, the most that this server holds",
                retry_after_s=1.0,
            )
        self.num_calls += 1
        self.num_streams += stream
        self._idle.clear()
        try:
            yield
        finally:
            self.num_calls -= 1
            self.num_streams -= stream
            if self.num_calls == 0:
                self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()


def wrap(service: str, handlers: Mapping[str, Handler], calls: Calls) -> dict[str, Handler]:
    """The handlers that `add_<Service>Servicer_to_server` registers, each wrapped."""
    return {name: _wrap(f"{service}.{name}", handler, calls) for name, handler in handlers.items()}


def _wrap(method: str, handler: Any, calls: Calls) -> Handler:
    make: Callable[..., Handler]
    match handler.request_streaming, handler.response_streaming:
        case False, False:
            make, behavior = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        case False, True:
            make, behavior = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        case True, False:
            make, behavior = grpc.stream_unary_rpc_method_handler, handler.stream_unary
        case _:
            make, behavior = grpc.stream_stream_rpc_method_handler, handler.stream_stream
    answer = _stream if handler.response_streaming else _single
    return make(answer(method, behavior, calls), deserializer(method), handler.response_serializer)


def _single(method: str, behavior: Behavior, calls: Calls) -> Behavior:
    async def call(request: Any, context: Context) -> Any:
        try:
            with calls.one(stream=False):
                return await behavior(_decoded(request), context)
        except Exception as error:
            await _abort(method, context, error)

    return call


def _stream(method: str, behavior: Behavior, calls: Calls) -> Behavior:
    async def call(request: Any, context: Context) -> None:
        try:
            # Written and closed here rather than yielded: a call that is cancelled while a response
            # is being written closes the handler at once, not when its generator is collected.
            with calls.one(stream=True):
                async with aclosing(behavior(_decoded(request), context)) as responses:
                    async for response in responses:
                        # Waits for as long as flow control asks for: a client that does not
                        # read holds up its own call only, and not for ever.
                        with calls.slow_clients.writing():
                            await context.write(response)
        except Exception as error:
            await _abort(method, context, error)

    return call


def _decoded(request: Any) -> Any:
    """The request, or the stream of requests, with whatever could not be decoded raised."""
    if isinstance(request, Undecodable):
        raise request.error
    return _decoded_stream(request) if hasattr(request, "__aiter__") else request


async def _decoded_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, Undecodable):
            raise request.error
        yield request


async def _abort(method: str, context: Context, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):  # the handler aborted by itself
        raise error
    if isinstance(error, grpc.aio.AioRpcError):  # a call that it made on behalf of this one
        error = from_rpc_error(error)
    if not isinstance(error, errors.BatonError):
        logger.error("%s failed", method, exc_info=error)
        error = errors.Internal(
            f"{type(error).__name__} in {method}; the server's log has the rest"
        )
    message = convert.error_to_proto(error)
    details = f"{message.field}: {message.message}" if message.field else message.message
    metadata = ((ERROR_METADATA, message.SerializeToString()),)
    await context.abort(status_code(error), details, metadata)
