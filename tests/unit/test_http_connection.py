"""HTTP connections: answers leave at once, and a client that reads nothing of them is given up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from router.http.connection import Connection
from router.http.server import HttpServer
from tests.cluster.watching import eventually

LARGE = 32 << 20  # more than any kernel keeps for a client
GET = b"GET / HTTP/1.1\r\nHost: baton\r\n\r\n"


async def whole(scope: Scope, receive: Receive, send: Send) -> None:
    size = str(LARGE).encode()
    headers = [(b"content-length", size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(LARGE >> 20):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    await send({"type": "http.response.body"})


async def wait_for_connections(server: HttpServer, count: int) -> None:
    await eventually(
        lambda: asyncio.sleep(0, len(connections(server))), lambda number: number == count
    )


def connections(server: HttpServer) -> set[Any]:
    return server._server.server_state.connections


async def test_answers_are_sent_at_once() -> None:
    server = await HttpServer.start(whole, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await wait_for_connections(server, 1)
    [connection] = connections(server)
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()
    await server.stop()


@pytest.mark.parametrize(("app", "asked"), [(whole, GET), (stream, GET), (whole, GET + GET)])
async def test_a_client_that_reads_nothing_is_given_up(app: ASGIApp, asked: bytes) -> None:
    server = await HttpServer.start(app, "127.0.0.1", 0, slow_client_s=0.1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", server.port))
        await loop.sock_sendall(client, asked)
        await wait_for_connections(server, 1)
        await wait_for_connections(server, 0)  # although not a byte was read
        num_bytes = 0
        try:
            while data := await loop.sock_recv(client, 1 << 20):
                num_bytes += len(data)
        except ConnectionResetError:  # so it looks where the kernel kept nothing
            pass
        assert num_bytes < LARGE
    await server.stop()


class Clock:
    """Stands in for the event loop's: what is due is called by hand."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(
        self, delay_s: float, callback: Callable[..., None], *args: Any
    ) -> asyncio.Handle:
        self.due.append(lambda: callback(*args))
        return asyncio.Handle(callback, args, asyncio.get_running_loop())


class Peer(asyncio.Transport):
    """A client's side of a connection, of which only what waits for it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.aborted = True


async def test_a_client_that_reads_slowly_is_not_given_up() -> None:
    clock, peer = Clock(), Peer()
    kind = Connection.limited(1.0)
    connection = kind(uvicorn.Config(whole), ServerState(), {})
    connection.loop = clock  # type: ignore[assignment]
    connection.connection_made(peer)
    clock.due.clear()  # that of the head
    peer.waiting = 1000
    connection.pause_writing()
    for left in (999, 500, 1):
        peer.waiting = left
        clock.due.pop()()
        assert not peer.aborted
    clock.due.pop()()
    assert peer.aborted
