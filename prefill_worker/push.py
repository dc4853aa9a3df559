"""Moves a prefill worker's blocks to its readers: the orders of the role, performed.

    engine's thread   Open, WriteCached, then per layer what the step completes -> link.write
    link's thread     a write is done: checksums are summed up; a block with all its layers is announced
    fence thread      one per link: waits until it has let a transfer go, then tells the role

Knows links and blocks; neither samples nor gRPC.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial

from baton.errors import BatonError, Cancelled, Internal
from kv_transfer.base import Link, TransferId, Write, Written
from kv_transfer.checksum import MODULUS
from prefill_worker.messages import (
    BlockWrites,
    Borrow,
    Delivered,
    Event,
    Fence,
    FenceDone,
    Key,
    Open,
    Order,
    ReaderId,
    WriteCached,
    WriteFailed,
)

log = logging.getLogger(__name__)

HangUp = Callable[[ReaderId, BatonError], None]


@dataclass(frozen=True, slots=True)
class Arrived:
    """Consecutive logical blocks from `first_block` on lie in the reader's pool whole. `busy_s`: for how
    long the link has been busy with their transfer so far."""

    first_block: int
    checksums: Sequence[int]
    busy_s: float


Announce = Callable[[Key, Arrived], None]


@dataclass(slots=True, eq=False)
class _Reader:
    """Fences wait on a thread of the link's own: a stalled peer delays nobody else's. `closed`: once its
    stream has ended, done when the link is."""

    link: Link
    fences: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="fence")
    )
    closed: Future[None] | None = None


@dataclass(slots=True)
class _Transfer:
    """`sums` and `num_layers_left` by logical block; guarded by the pusher's lock."""

    id: TransferId
    reader: _Reader
    sums: dict[int, int] = field(default_factory=dict)
    num_layers_left: dict[int, int] = field(default_factory=dict)
    busy_s: float = 0.0


class Pusher:
    """`announce` is called on a link's thread for blocks that lie in the reader's pool whole, `hang_up`
    on any thread when a link has failed: it will not work again. `fail` hears on any thread that a link
    cannot promise a fence: only this process's end proves that it writes no more."""

    def __init__(
        self,
        num_layers: int,
        post: Callable[[Event], None],
        announce: Announce,
        hang_up: HangUp,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._num_layers = num_layers
        self._post = post
        self._announce = announce
        self._hang_up = hang_up
        self._fail = fail
        self._lock = threading.Lock()
        self._readers: dict[ReaderId, _Reader] = {}
        self._transfers: dict[Key, _Transfer] = {}
        self._step: Sequence[tuple[Key, BlockWrites]] = ()

    def add_reader(self, reader: ReaderId, link: Link) -> None:
        self._readers[reader] = _Reader(link)

    def remove_reader(self, reader: ReaderId) -> Future[None]:
        """Its stream ended. Done when nothing is written any more for what it had asked."""
        known = self._readers.pop(reader, None)
        if known is None:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        with self._lock:
            known.closed = known.fences.submit(self._certainly, known.link.close)
            known.fences.shutdown(wait=False)
        return known.closed

    def close(self) -> None:
        wait([self.remove_reader(reader) for reader in list(self._readers)])

    # On the engine's thread

    def perform(self, orders: Sequence[Order]) -> None:
        for order in orders:
            match order:
                case Open():
                    self._open(order)
                case WriteCached(key, writes):
                    self._write(key, writes, range(self._num_layers))
                case Fence(key):
                    self._fence(key)
                case Borrow():
                    pass  # nothing leaves: `prefill_worker.borrower` performs it

    def begin_step(self, writes: Sequence[tuple[Key, BlockWrites]]) -> None:
        """What each layer of the step that follows completes."""
        self._step = writes

    def layer_written(self, layer: int) -> None:
        """All KV of `layer` of this step lies in this worker's blocks."""
        for key, writes in self._step:
            self._write(key, writes, range(layer, layer + 1))

    def _open(self, order: Open) -> None:
        reader = self._readers.get(order.key[0])
        if reader is None:
            self._post(WriteFailed(order.key, Cancelled("the reader is gone")))
            return
        transfer = _Transfer(TransferId(order.request_id, order.key[1]), reader)
        try:
            reader.link.open(transfer.id, order.destination_blocks)
        except BatonError as error:
            self._failed(order.key, error)
            return
        with self._lock:
            self._transfers[order.key] = transfer

    def _write(self, key: Key, writes: BlockWrites, layers: range) -> None:
        with self._lock:
            transfer = self._transfers.get(key)
            if transfer is None:
                return
            for logical in writes.logical:
                transfer.num_layers_left.setdefault(logical, self._num_layers)
        write = Write(layers.start, writes.sources, writes.destinations, len(layers))
        future = transfer.reader.link.write(transfer.id, write)
        future.add_done_callback(partial(self._written, key, writes, len(layers)))

    # On the link's thread

    def _written(
        self, key: Key, writes: BlockWrites, num_layers: int, future: Future[Written]
    ) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            if not isinstance(error, Cancelled):  # fenced on purpose: whoever asked knows
                known = error if isinstance(error, BatonError) else Internal(repr(error))
                self._failed(key, known)
            return
        runs = self._arrived(key, writes, num_layers, future.result())
        for arrived in runs:
            self._announce(key, arrived)
        if runs:
            self._post(Delivered(key))

    def _arrived(
        self, key: Key, writes: BlockWrites, num_layers: int, written: Written
    ) -> list[Arrived]:
        """The blocks of which these were the last layers, consecutive ones together."""
        runs: list[Arrived] = []
        with self._lock:
            transfer = self._transfers.get(key)
            if transfer is None:
                return []
            transfer.busy_s += written.busy_s
            checksums: list[int] = []
            for logical, part in zip(writes.logical, written.checksums, strict=True):
                total = (transfer.sums.get(logical, 0) + part) % MODULUS
                transfer.sums[logical] = total
                transfer.num_layers_left[logical] -= num_layers
                if transfer.num_layers_left[logical] == 0:
                    # Forgotten: it may be sent again.
                    del transfer.num_layers_left[logical], transfer.sums[logical]
                    if not runs or logical != runs[-1].first_block + len(checksums):
                        checksums = []
                        runs.append(Arrived(logical, checksums, transfer.busy_s))
                    checksums.append(total)
        return runs

    def _failed(self, key: Key, error: BatonError) -> None:
        self._post(WriteFailed(key, error))
        self._hang_up(key[0], error)

    # Fences

    def _fence(self, key: Key) -> None:
        with self._lock:
            transfer = self._transfers.pop(key, None)
            reader = transfer.reader if transfer is not None else None
            fenced = reader.closed if reader is not None else None  # which fences all of the link
            if transfer is not None and reader is not None and fenced is None:
                fence = partial(reader.link.fence, transfer.id)
                fenced = reader.fences.submit(self._certainly, fence)
        if fenced is None:
            self._post(FenceDone(key))
        else:
            fenced.add_done_callback(partial(self._fenced, key))

    def _fenced(self, key: Key, fenced: Future[None]) -> None:
        if fenced.exception() is None:
            self._post(FenceDone(key))

    def _certainly(self, fence: Callable[[], None]) -> None:
        try:
            fence()
        except Exception as error:
            self._fail(error)
            raise
