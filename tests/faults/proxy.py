"""A TCP port that leads to another one, until it is cut: how a stream is lost while both its ends live. Or
until it swallows what is sent, and neither end is told: how a network partition looks from both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

_UNBOUNDED = 1 << 62


class Proxy:
    """On the event loop. After a cut new connections are let through again. `num_bytes` have come back from
    the other port."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._open: set[asyncio.Task[None]] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._most_bytes = _UNBOUNDED
        self.num_bytes = 0
        self.address = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def cut(self) -> None:
        for task in self._open:
            task.cancel()

    def swallow(self, after_bytes: int = 0) -> None:
        """Nothing passes any more, in either direction, once so much more has come back."""
        self._most_bytes = self.num_bytes + after_bytes
        self._stop_at_limit()

    def let_pass(self) -> None:
        """What was swallowed arrives, as by the retransmissions of TCP."""
        self._most_bytes = _UNBOUNDED
        self._passes.set()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        if self._open:
            await asyncio.wait(self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with suppress(asyncio.CancelledError, OSError):
                far_reader, far_writer = await asyncio.open_connection(*self._target)
                try:
                    await _both(self._there(reader, far_writer), self._back(far_reader, writer))
                finally:
                    far_writer.transport.abort()
        finally:
            writer.transport.abort()
            self._open.discard(task)

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            while data:
                await self._passes.wait()
                size = min(len(data), self._most_bytes - self.num_bytes)
                self.num_bytes += size
                self._stop_at_limit()
                writer.write(data[:size])
                await writer.drain()
                data = data[size:]

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()

    def _stop_at_limit(self) -> None:
        if self.num_bytes >= self._most_bytes:
            self._passes.clear()


async def _both(*pumps: Coroutine[None, None, None]) -> None:
    """Until one of them ends."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
