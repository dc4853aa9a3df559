"""The part of a `Link` that every transport shares: a queue, a thread, and the fence.

A transport brings a `Wire`, which moves one write and returns when its bytes lie in D's pool. It is only ever
called on the link's thread, so that "the write in progress" is one thing, and fencing is to cancel what is
queued and to wait for that. Writes are cut into portions, which bounds the wait.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from baton.errors import BatonError, Cancelled, Internal, PeerLost
from kv_transfer.base import TransferId, Write

PORTION_BYTES = 16 << 20  # about 2 ms of memcpy, 10 ms of Gloo


class Wire(Protocol):
    """One pair of ranks, as a transport moves bytes between them."""

    @property
    def piece_bytes(self) -> int:
        """How much one block is in one write."""
        ...

    def put(self, transfer: TransferId, write: Write) -> Sequence[int]:
        """Returns when all bytes lie in D's pool, with their part of each block's checksum. PeerLost if
        they do not. However it ends, this call will not write afterwards."""
        ...

    def close(self) -> None:
        """Called once, on the link's thread, when nothing will be put any more."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    """A queued write. `sums` grows portion by portion."""

    transfer: TransferId
    write: Write
    future: Future[Sequence[int]] = field(default_factory=Future)
    sums: list[int] = field(default_factory=list)


class OrderedLink:
    """A `Link` over `wire`."""

    def __init__(self, wire: Wire, name: str) -> None:
        self._wire = wire
        self._portion_blocks = max(1, PORTION_BYTES // max(1, wire.piece_bytes))
        self._changed = threading.Condition()  # guards everything below
        self._open: dict[TransferId, frozenset[int]] = {}
        self._jobs: deque[_Job] = deque()
        self._writing: TransferId | None = None
        self._closed = False
        self._lost: BatonError | None = None
        self._thread = threading.Thread(target=self._main, name=f"link-{name}", daemon=True)
        self._thread.start()

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        with self._changed:
            self._check_alive()
            self._open[transfer] = frozenset(blocks)

    def write(self, transfer: TransferId, write: Write) -> Future[Sequence[int]]:
        job = _Job(transfer, write)
        job.future.set_running_or_notify_cancel()  # a write ends by `fence`, not by its future
        with self._changed:
            error = self._refusal(transfer, write)
            if error is None:
                self._jobs.append(job)
                self._changed.notify_all()
        if error is not None:
            job.future.set_exception(error)
        return job.future

    def fence(self, transfer: TransferId) -> None:
        with self._changed:
            self._open.pop(transfer, None)
            dropped = [job for job in self._jobs if job.transfer == transfer]
            for job in dropped:
                self._jobs.remove(job)
            self._changed.wait_for(lambda: self._writing != transfer)
        _fail(dropped, Cancelled("the transfer was fenced"))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._open.clear()
            dropped = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        _fail(dropped, Cancelled("the link was closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_alive(self) -> None:
        if self._closed:
            raise PeerLost("the link was closed")
        if self._lost is not None:
            raise PeerLost(f"the link is lost: {self._lost}")

    def _refusal(self, transfer: TransferId, write: Write) -> BatonError | None:
        if self._lost is not None:
            return PeerLost(f"the link is lost: {self._lost}")
        blocks = self._open.get(transfer)
        if blocks is None:
            return Cancelled("the transfer is not open on this link")
        if len(write.source_blocks) != len(write.destination_blocks):
            return Internal(
                f"{len(write.source_blocks)} blocks go to {len(write.destination_blocks)}",
                field="destination_blocks",
            )
        if not blocks.issuperset(write.destination_blocks):
            strange = sorted(set(write.destination_blocks) - blocks)
            return Internal(f"{strange[:8]} are not the transfer's", field="destination_blocks")
        return None

    # The link's thread

    def _main(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._perform(job)
        finally:
            self._wire.close()

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return self._jobs.popleft() if self._jobs else None

    def _perform(self, job: _Job) -> None:
        try:
            for portion in _portions(job.write, self._portion_blocks):
                self._begin(job)
                try:
                    job.sums += self._wire.put(job.transfer, portion)
                finally:
                    self._end()
        except Cancelled as error:
            job.future.set_exception(error)
        except Exception as error:  # whoever waits is told; the link is not trusted again
            self._lose(job, error)
        else:
            job.future.set_result(job.sums)

    def _begin(self, job: _Job) -> None:
        with self._changed:
            if job.transfer not in self._open:
                raise Cancelled("the transfer was fenced")
            self._writing = job.transfer

    def _end(self) -> None:
        with self._changed:
            self._writing = None
            self._changed.notify_all()

    def _lose(self, job: _Job, error: Exception) -> None:
        known = (
            error if isinstance(error, BatonError) else Internal(f"the transport broke: {error!r}")
        )
        with self._changed:
            self._lost = known
            dropped = [job, *self._jobs]
            self._jobs.clear()
        _fail(dropped, known)


def _portions(write: Write, num_blocks: int) -> Iterator[Write]:
    for begin in range(0, len(write.source_blocks), num_blocks):
        end = begin + num_blocks
        yield Write(
            write.layer, write.source_blocks[begin:end], write.destination_blocks[begin:end]
        )


def _fail(jobs: Iterable[_Job], error: BatonError) -> None:
    for job in jobs:
        job.future.set_exception(error)
