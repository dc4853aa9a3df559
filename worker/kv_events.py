"""Tells routers which blocks a pool has published and forgotten.

A subscriber first gets a snapshot, then numbered deltas. Numbers are given and snapshots taken on the
engine's thread, so that no change falls between the two; delivery happens on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from baton.kv_records import encode
from engine.block_manager import BlockManager


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Changes first_number .. first_number + count - 1; `records` is msgpack [[kind, [id, ...]], ...]."""

    first_number: int
    count: int
    snapshot: bool
    records: bytes


Queue = asyncio.Queue[KvEvents]


class KvEventLog:
    """One pool's changes. `publish` and `subscribe` run on the engine's thread."""

    def __init__(self, blocks: BlockManager, loop: asyncio.AbstractEventLoop) -> None:
        self._blocks = blocks
        self._loop = loop
        self._next_number = 0
        self._queues: list[Queue] = []

    def publish(self) -> None:
        """Sends what has changed since the last call to everybody who listens."""
        changes = self._blocks.take_changes()
        if not changes:
            return
        first, self._next_number = self._next_number, self._next_number + len(changes)
        if self._queues:
            self._send(self._queues, KvEvents(first, len(changes), False, encode(changes)))

    def subscribe(self, queue: Queue) -> None:
        """From here on `queue` gets every change, beginning with all that is published now."""
        self.publish()
        snapshot = [(True, block_id) for block_id in self._blocks.published]
        self._send([queue], KvEvents(self._next_number, 0, True, encode(snapshot)))
        self._queues.append(queue)

    def unsubscribe(self, queue: Queue) -> None:
        """Also of a queue whose subscription was given up before it was made."""
        if queue in self._queues:
            self._queues.remove(queue)

    def _send(self, queues: Iterable[Queue], events: KvEvents) -> None:
        for queue in queues:
            self._loop.call_soon_threadsafe(queue.put_nowait, events)
