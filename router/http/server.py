"""Runs an ASGI app inside the event loop that is already running, next to the gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from baton.errors import ConfigError
from router.http.connection import Connection

# An idle connection is kept for longer than by any usual client or load balancer (60 s), so that the client
# is the one that closes it, and never sends a request into a connection that is being closed.
_IDLE_S = 75


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the process's own: uvicorn would replace its handlers."""
        yield


class HttpServer:
    """Started by `start`; serves until `stop`."""

    def __init__(self, server: uvicorn.Server, listeners: list[socket.socket]) -> None:
        self._server = server
        self._listeners = listeners
        self._serving = asyncio.create_task(server.serve(sockets=listeners), name="http")
        self.port: int = listeners[0].getsockname()[1]

    @classmethod
    async def start(
        cls,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        own_port: int | None = None,
        slow_client_s: float | None = None,
        grace_s: int = 5,
    ) -> HttpServer:
        """Port 0 takes a free one. `own_port`: of this process alone; `port` is then shared with others.
        `slow_client_s`: how long a client may take for the head of a request, and leave what it asked for
        unread. `grace_s`: how long `stop` waits for last words to leave."""
        shares = own_port is not None
        listeners = [_listen(host, port, shares)]
        if own_port is not None:
            listeners.append(_listen(host, own_port, shares))
        config = uvicorn.Config(
            app,
            http=Connection.limited(slow_client_s),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=grace_s,
            timeout_keep_alive=_IDLE_S,
        )
        started = cls(_Server(config), listeners)
        while not started._server.started:
            if started._serving.done():
                await started._serving  # raises what kept it from starting
                break
            await asyncio.sleep(0.001)
        return started

    async def stop(self) -> None:
        self._server.should_exit = True
        await self._serving
        for listener in self._listeners:
            listener.close()


def _listen(host: str, port: int, reuse_port: bool) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(
            (host, port), family=family, backlog=2048, reuse_port=reuse_port
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", field="http_port"
        ) from error
