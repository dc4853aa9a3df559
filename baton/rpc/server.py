"""A gRPC server as every Baton process runs it: typed errors, health, reflection, bounds, drain.

It knows no service by name. Two kinds are added to it: those whose calls are the work (`add`), for
which a drain waits, and those that accompany it (`add_background`: streams between processes that
last as long as both live, and what operators call), which go on being answered until the very end.
A session is a call that carries work: a drain waits for the requests in it (`one_request`), and for
those of another face, as HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.errors import ConfigError
from baton.rpc.channel import KEEPALIVE, MAX_MESSAGE_BYTES
from baton.rpc.handlers import Calls, Handler, wrap

logger = logging.getLogger(__name__)

Servicer = TypeVar("Servicer")
Register = Callable[[Servicer, Any], None]

# What health knows beside the services: SERVING for as long as the process makes progress, also while it
# leaves and its services are NOT_SERVING.
LIVENESS = "liveness"

_MAX_PENDING = 100_000  # calls that have arrived and whose handlers have not begun
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`port` 0: any free one. `max_message_bytes`: a longer request is refused by gRPC itself with
    RESOURCE_EXHAUSTED and both sizes in the message. `slow_client_s`: a call whose client reads
    nothing for this long is cancelled, unless it is a background one; None for no limit.
    `reuse_port`: several processes on one port; `own_port`: of this process alone, beside it."""

    host: str = "127.0.0.1"
    port: int = 0
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_open_streams: int = 4096
    slow_client_s: float | None = None
    reuse_port: bool = False
    own_port: int | None = None


class Server:
    """Serves what was added, from `start` to `drain` or `stop`. Made and used on one event loop.

    Health is NOT_SERVING until `set_serving(True)`: being reachable is not being able to serve.
    """

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.port = 0  # the real one, once started
        self._calls = Calls(self.options.max_open_streams, self.options.slow_client_s)
        self._session_calls = Calls(self.options.max_open_streams, self.options.slow_client_s)
        self._background_calls = Calls(self.options.max_open_streams)
        self._services: list[str] = []
        self._health = health.aio.HealthServicer()
        self._leaving = False
        self._server = grpc.aio.server(
            options=[
                *KEEPALIVE,
                # Peers ping as often as KEEPALIVE says, without being taken for attackers.
                ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
                # A burst waits for its typed refusals: gRPC's own is a bare CANCELLED, at random.
                ("grpc.server.max_pending_requests", _MAX_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
                ("grpc.max_receive_message_length", self.options.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", int(self.options.reuse_port)),
            ]
        )

    @property
    def address(self) -> str:
        return address_of(self.options.host, self.port)

    def add(
        self, register: Register[Servicer], servicer: Servicer, *, sessions: Sequence[str] = ()
    ) -> None:
        """Calls that are the work. `register`: the generated `add_<Service>Servicer_to_server`.
        `sessions`: methods whose calls last as long as their client likes."""
        self._add(register, servicer, self._calls, sessions)

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._calls.draining

    def one_request(self) -> AbstractContextManager[None]:
        """Counts a request of a session, or of another face, as if it were a call; raises `Draining` or
        `Overloaded`."""
        return self._calls.one(stream=True)

    def add_background(self, register: Register[Servicer], servicer: Servicer) -> None:
        """Calls that a drain does not wait for and does not refuse."""
        self._add(register, servicer, self._background_calls)

    def _add(
        self,
        register: Register[Servicer],
        servicer: Servicer,
        calls: Calls,
        sessions: Sequence[str] = (),
    ) -> None:
        registrar = _Registrar()
        register(servicer, registrar)
        for service, handlers in registrar.services.items():
            self._services.append(service)
            of_session = {name: handlers[name] for name in sessions}
            wrapped = {
                **wrap(service, handlers, calls),
                **wrap(service, of_session, self._session_calls),
            }
            generic = grpc.method_handlers_generic_handler(service, wrapped)
            self._server.add_generic_rpc_handlers((generic,))

    async def start(self) -> int:
        """Listens and answers; the real port. `ConfigError` where the address cannot be had."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self.set_serving(False)
        await self.set_alive(True)
        self.port = self._listen(self.options.port)
        if self.options.own_port is not None:
            self._listen(self.options.own_port)
        await self._server.start()
        return self.port

    def _listen(self, port: int) -> int:
        wanted = address_of(self.options.host, port)
        try:
            return self._server.add_insecure_port(wanted)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {wanted}: {error}", field="port") from error

    async def set_serving(self, serving: bool) -> None:
        """What health says, overall and of every service. Has no effect once the server leaves."""
        for service in ("", *self._services):
            await self._set_health(service, serving and not self._leaving)

    async def set_alive(self, alive: bool) -> None:
        """What health says of `LIVENESS`."""
        await self._set_health(LIVENESS, alive)

    async def _set_health(self, service: str, good: bool) -> None:
        await self._health.set(service, _SERVING if good else _NOT_SERVING)

    async def leave(self) -> None:
        """Health says from now on and for good that this process does not serve; it lives, and still
        answers."""
        self._leaving = True
        await self.set_serving(False)

    async def drain(self, grace_s: float) -> None:
        """Leaves in order: health says so, new work is refused with `Draining`, work in flight has
        `grace_s` to end, then everything that is still open is cut with UNAVAILABLE."""
        await self.leave()
        self._calls.draining = True
        try:
            async with asyncio.timeout(grace_s):
                await self._calls.wait_idle()
        except TimeoutError:
            logger.warning("drain: cutting %d calls after %g s", self._calls.num_calls, grace_s)
        await self.stop()

    async def stop(self) -> None:
        """At once: open calls end with UNAVAILABLE on the client's side and are cancelled on
        this."""
        await self._server.stop(grace=None)

    async def wait_for_termination(self) -> None:
        await self._server.wait_for_termination()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()


class _Registrar:
    """Stands in for a server before the generated functions, to get at the handlers they
    register."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Handler]] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers again, but without their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        self.services[service] = handlers


def address_of(host: str, port: int) -> str:
    """host:port, as gRPC wants it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
