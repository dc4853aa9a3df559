"""Tells routers which blocks a pool has published and forgotten.

A subscriber first gets a snapshot, then numbered deltas. Numbers are given and snapshots taken on the
engine's thread, so that no change falls between the two; delivery happens on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from baton.kv_records import encode, encode_stored
from baton.rpc.outgoing import BoundedOutgoing
from baton.scheduling.block_manager import BlockManager

_PIECE = 2_048  # ids in a message of a snapshot: a router applies them in about a millisecond


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Changes first_number .. first_number + count - 1; `records` is msgpack [[kind, [id, ...]], ...].
    A snapshot comes in pieces, of which only the first is marked as one: it replaces what was known."""

    first_number: int
    count: int
    snapshot: bool
    records: bytes


class Subscriber(BoundedOutgoing[KvEvents]):
    """Of changes it may leave so much unread and no more; a snapshot is as large as its pool is."""

    def __init__(self) -> None:
        super().__init__(lambda events: len(events.records) if events.count else 0)


class KvEventLog:
    """One pool's changes. `publish`, `subscribe` and `unsubscribe` run on the engine's thread."""

    def __init__(self, blocks: BlockManager, loop: asyncio.AbstractEventLoop) -> None:
        self._blocks = blocks
        self._loop = loop
        self._next_number = 0
        self._subscribers: list[Subscriber] = []

    def publish(self) -> None:
        """Sends what has changed since the last call to everybody who listens."""
        changes = self._blocks.take_changes()
        if not changes:
            return
        first, self._next_number = self._next_number, self._next_number + len(changes)
        if self._subscribers:
            self._send(self._subscribers, KvEvents(first, len(changes), False, encode(changes)))

    def subscribe(self, subscriber: Subscriber) -> None:
        """From here on it gets every change, beginning with all that is published now."""
        self.publish()
        for piece in self._snapshot():
            self._send([subscriber], piece)
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Also of one whose subscription was given up before it was made."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    def _snapshot(self) -> Iterator[KvEvents]:
        """At least one piece, also of an empty pool."""
        ids = list(self._blocks.published)
        for first in range(0, max(1, len(ids)), _PIECE):
            records = encode_stored(ids[first : first + _PIECE])
            yield KvEvents(self._next_number, 0, first == 0, records)

    def _send(self, subscribers: Iterable[Subscriber], events: KvEvents) -> None:
        for subscriber in subscribers:
            self._loop.call_soon_threadsafe(subscriber.put, events)
