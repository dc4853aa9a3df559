"""One HTTP connection, held only as long as its client makes use of it.

uvicorn limits how long a connection may be idle between requests, but neither how long a request's head
may take nor how long an answer may stay unread: connections whose clients say or read nothing would be
held for ever, until no file descriptor is left.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """Hangs up when a request's head is not complete within `slow_client_s`, or when its client takes
    nothing of what waits for it for as long (None: no limit). What it was owed is dropped then."""

    slow_client_s: float | None = None
    _head_limit: asyncio.TimerHandle | None = None
    _read_limit: asyncio.TimerHandle | None = None

    @classmethod
    def limited(cls, slow_client_s: float | None) -> type[Connection]:
        """As uvicorn wants it: a class, which it instantiates itself."""
        return type("LimitedConnection", (cls,), {"slow_client_s": slow_client_s})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _send_at_once(transport)
        # Whatever the kernel does not take waits for the client, and is known to wait: no more is made.
        transport.set_write_buffer_limits(high=0)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        if self._read_limit is not None:
            self._read_limit.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching_head()
        if self._read_limit is not None:
            self._read_limit.cancel()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """The clock runs from the first byte, or the connection, to the end of the head."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching_head()
        elif self._head_limit is None and self.slow_client_s is not None:
            self._head_limit = self.loop.call_later(self.slow_client_s, self.transport.abort)

    def _stop_watching_head(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _watch_reader(self) -> None:
        if self.slow_client_s is not None:
            num_bytes = self.transport.get_write_buffer_size()
            self._read_limit = self.loop.call_later(self.slow_client_s, self._look, num_bytes)

    def _look(self, num_bytes: int) -> None:
        """Nothing is added while writing is paused: what has not become less has not been read."""
        if self.transport.get_write_buffer_size() < num_bytes:
            self._watch_reader()
            return
        log.info("%s read nothing for %g s of what it asked for", self.client, self.slow_client_s)
        self.transport.abort()  # an orderly end would wait for the client as well


def _send_at_once(transport: asyncio.Transport) -> None:
    """Without Nagle's delay, which together with delayed acknowledgements costs some 40 ms an answer.
    asyncio sees to it for some listening sockets only: those that name their protocol."""
    connected = transport.get_extra_info("socket")
    if connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
