"""One HTTP connection, held only as long as its client makes use of it.

uvicorn limits how long a connection may be idle between requests, but not how long a request's head may
take: connections that say little or nothing would be held for ever, until no file descriptor is left.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Hangs up when a request's head is not complete within `head_timeout_s` (None: no limit)."""

    head_timeout_s: float | None = None
    _limit: asyncio.TimerHandle | None = None

    @classmethod
    def limited(cls, head_timeout_s: float | None) -> type[Connection]:
        """As uvicorn wants it: a class, which it instantiates itself."""
        return type("LimitedConnection", (cls,), {"head_timeout_s": head_timeout_s})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """The clock runs from the first byte, or the connection, to the end of the head."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._limit is None and self.head_timeout_s is not None:
            self._limit = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
