"""The processes of one router tell each other what routers tell each other through a store.

    process ──its report, every 0.1 s──> Hub, in their parent
            <──those of all others─────

Workers register with every process, so each keeps a state of its own; only this is shared. A process talks
to the hub over one end of a pair of sockets that it got from its parent: nobody else can. On the wire each
message is its length in four bytes and msgpack: a report, and in answer the list of the others'.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Callable, Sequence
from typing import Self

import msgpack

from baton.config import Times
from baton.state import records
from baton.state.base import RouterReport
from baton.state.embedded import EmbeddedState

logger = logging.getLogger(__name__)

_ANSWER_S = 1.0
_LENGTH_BYTES = 4


class Hub:
    """On the parent's event loop, from `async with` to its end."""

    def __init__(self) -> None:
        self._reports: dict[asyncio.Task[None], bytes] = {}
        self._serving: set[asyncio.Task[None]] = set()

    def connect(self) -> socket.socket:
        """The end for a process that is about to start. What it said is forgotten when it closes it, or
        dies; the caller closes its own copy once the process has one."""
        ours, theirs = socket.socketpair()
        task = asyncio.create_task(self._serve(ours), name="neighbour")
        self._serving.add(task)
        task.add_done_callback(self._forget)
        return theirs

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        self._reports.pop(task, None)

    async def _serve(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=ours)
        this = asyncio.current_task()
        assert this is not None
        try:
            while True:
                self._reports[this] = await _read(reader)
                others = [report for task, report in self._reports.items() if task is not this]
                await _write(writer, msgpack.packb(others))
        except (IncompleteReadError, OSError):
            pass  # it has gone
        finally:
            writer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class NeighbourState(EmbeddedState):
    """The state of one of several processes. `hub`: its end of a connection. `clock`: monotonic seconds."""

    def __init__(
        self,
        hub: socket.socket,
        times: Times | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(times, clock)
        self._fade_s = 2 * (times or Times()).report_interval_s  # as with a store
        self._hub = hub
        self._streams: tuple[StreamReader, StreamWriter] | None = None
        self._asking: asyncio.Task[Sequence[RouterReport]] | None = None
        self._others: Sequence[RouterReport] = ()
        self._heard_s = 0.0

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            self._close()

    async def exchange(self, own: RouterReport) -> Sequence[RouterReport]:
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask(own), name="neighbours")
        await asyncio.wait((self._asking,), timeout=_ANSWER_S)
        if self._asking.done():
            asked, self._asking = self._asking, None
            try:
                self._others, self._heard_s = asked.result(), self._clock()
            except (IncompleteReadError, OSError):
                # Its parent is gone; this process is about to leave as well.
                logger.warning("the other processes are not heard any more")
                await asyncio.sleep(_ANSWER_S)
        if self._clock() - self._heard_s > self._fade_s:
            self._others = ()
        return self._others

    async def _ask(self, own: RouterReport) -> Sequence[RouterReport]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(sock=self._hub)
        reader, writer = self._streams
        await _write(writer, records.pack_router(own))
        return [records.unpack_router(each) for each in msgpack.unpackb(await _read(reader))]

    def _close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        if self._streams is not None:
            self._streams[1].close()
        else:
            self._hub.close()


async def _read(reader: StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
    return await reader.readexactly(length)


async def _write(writer: StreamWriter, data: bytes) -> None:
    writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    await writer.drain()
