"""The part of a `Link` that every transport shares: a queue, a thread, and the fence.

A transport brings a `Wire`. Writes are cut into portions, which bounds how long a fence waits; a wire that
has to wait for answers has several of them under way:

    write ──> queue ──begin──> under way (at most `depth`) ──finish, in the same order──> future

The wire is only ever called on the link's thread. On a GPU that thread has a stream of its own, on which a
write's portions come after everything that was queued when `write` was called: a wire copies on the current
stream, or synchronizes with it. To fence a transfer is to cancel what of it is queued and
to wait for what is under way.

A wire that cannot be closed may still be writing, and nobody knows for how long. Then no fence is promised:
`fence` and `close` raise IntegrityError, and the end of this process is the only proof left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import torch

from baton.errors import BatonError, Cancelled, IntegrityError, Internal, PeerLost
from kv_transfer.base import TransferId, Write, Written
from kv_transfer.checksum import MODULUS
from kv_transfer.streams import Await, moment, use_side_stream

log = logging.getLogger(__name__)

PORTION_BYTES = 32 << 20  # about 4 ms of memcpy
_HOST = torch.device("cpu")

Finish = Callable[[], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Flow:
    """How a wire wants its writes. `piece_bytes`: one layer of one block; a portion has at most
    `portion_bytes` (but one block); `depth` portions may be under way at a time."""

    piece_bytes: int
    portion_bytes: int = PORTION_BYTES
    depth: int = 1

    def portions(self, write: Write) -> Iterator[Portion]:
        """Cuts `write`: whole layers together where several fit, because blocks of a layer may be
        adjacent, otherwise some blocks of one layer at a time."""
        num_blocks = len(write.source_blocks)
        some_layers = max(1, self.portion_bytes // max(1, num_blocks * self.piece_bytes))
        some_blocks = max(1, self.portion_bytes // self.piece_bytes)
        for layer in range(write.layer, write.layers.stop, some_layers):
            num_layers = min(some_layers, write.layers.stop - layer)
            for first in range(0, num_blocks, some_blocks):
                end = first + some_blocks
                sources, targets = (
                    write.source_blocks[first:end],
                    write.destination_blocks[first:end],
                )
                yield Portion(first, Write(layer, sources, targets, num_layers))


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a write, whose blocks are its blocks from `first_block` on."""

    first_block: int
    write: Write


class Wire(Protocol):
    """One pair of ranks, as a transport moves bytes between them."""

    @property
    def flow(self) -> Flow: ...

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        """Starts one portion. What it returns is called once, in the order of the calls, and returns when
        all bytes lie in D's pool, with their part of each block's checksum; Cancelled where D has
        revoked the transfer, PeerLost where the bytes will not come. Afterwards nothing of it is
        written any more."""
        ...

    def close(self) -> None:
        """Called once, on the link's thread. Nothing that is under way is written afterwards, unless it
        raises."""
        ...


@dataclass(slots=True, eq=False)
class _Job:
    """A queued write. `sums` grow portion by portion. `follow` orders them after the call of `write`."""

    transfer: TransferId
    portions: deque[Portion]
    sums: list[int]
    follow: Await
    future: Future[Written] = field(default_factory=Future)
    busy_s: float = 0.0
    num_under_way: int = 0
    over: bool = False

    @property
    def has_landed(self) -> bool:
        return not self.portions and not self.num_under_way

    def landed(self, portion: Portion, sums: Sequence[int], busy_s: float) -> None:
        self.busy_s += busy_s
        for block, part in enumerate(sums, portion.first_block):
            self.sums[block] = (self.sums[block] + part) % MODULUS


@dataclass(slots=True, eq=False)
class _UnderWay:
    job: _Job
    portion: Portion
    begun_s: float = 0.0
    finish: Finish | None = None


class OrderedLink:
    """A `Link` over `wire`, which reads memory of `device`."""

    def __init__(self, wire: Wire, name: str, device: torch.device = _HOST) -> None:
        self._wire = wire
        self._flow = wire.flow
        self._device = device
        self._finished_s = 0.0  # when the last portion ended
        self._changed = threading.Condition()  # guards everything below
        self._open: dict[TransferId, frozenset[int]] = {}
        self._jobs: deque[_Job] = deque()
        self._under_way: deque[_UnderWay] = deque()
        self._closed = False
        self._lost: BatonError | None = None
        self._unclosed: IntegrityError | None = None  # why nothing can be promised any more
        self._thread = threading.Thread(target=self._main, name=f"link-{name}", daemon=True)
        self._thread.start()

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        with self._changed:
            self._check_alive()
            self._open[transfer] = frozenset(blocks)

    def write(self, transfer: TransferId, write: Write) -> Future[Written]:
        portions = deque(self._flow.portions(write))
        sums = [0] * len(write.source_blocks)
        job = _Job(transfer, portions, sums, moment(self._device))
        job.future.set_running_or_notify_cancel()  # a write ends by `fence`, not by its future
        with self._changed:
            error = self._refusal(transfer, write)
            if error is None and portions:
                self._jobs.append(job)
                self._changed.notify_all()
        if error is not None:
            job.future.set_exception(error)
        elif not portions:
            job.future.set_result(Written((), 0.0))
        return job.future

    def fence(self, transfer: TransferId) -> None:
        with self._changed:
            self._open.pop(transfer, None)
            dropped = self._drop(lambda job: job.transfer == transfer)
            self._changed.wait_for(
                lambda: all(each.job.transfer != transfer for each in self._under_way)
            )
        _fail(dropped, Cancelled("the transfer was fenced"))
        self._check_closed()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._open.clear()
            dropped = self._drop(lambda job: True)
            self._changed.notify_all()
        _fail(dropped, Cancelled("the link was closed"))
        if threading.current_thread() is not self._thread:
            self._thread.join()
            self._check_closed()

    def _check_closed(self) -> None:
        if self._unclosed is not None:
            raise IntegrityError(self._unclosed.message)

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

    def _drop(self, unwanted: Callable[[_Job], bool]) -> list[_Job]:
        """Takes jobs out of the queue; what of them is under way goes on, and changes nothing more."""
        dropped = [job for job in self._jobs if unwanted(job)]
        for job in dropped:
            job.over = True
            self._jobs.remove(job)
        return dropped

    # The link's thread

    def _main(self) -> None:
        try:
            use_side_stream(self._device)
            while self._advance():
                pass
        except Exception as error:
            self._lose(error)
        if self._lost is None:
            self._close_wire()

    def _advance(self) -> bool:
        """Begins what may be under way, then finishes the oldest. False: closed, and all is done."""
        while len(self._under_way) < self._flow.depth:
            taken = self._take()
            if taken is None:
                break
            self._begin(taken)
        if not self._under_way:
            return False
        self._finish(self._under_way[0])
        return True

    def _take(self) -> _UnderWay | None:
        """The next portion, from here on under way. Waits for one only where there is nothing to finish."""
        with self._changed:
            if not self._under_way:
                self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            job = self._jobs[0]
            taken = _UnderWay(job, job.portions.popleft())
            job.num_under_way += 1
            if not job.portions:
                self._jobs.popleft()
            self._under_way.append(taken)
            return taken

    def _begin(self, taken: _UnderWay) -> None:
        taken.begun_s = time.perf_counter()
        try:
            taken.job.follow()
            taken.finish = self._wire.begin(taken.job.transfer, taken.portion.write)
        except Exception as error:  # told in its turn, after what was begun before
            taken.finish = _raising(error)

    def _finish(self, oldest: _UnderWay) -> None:
        job = oldest.job
        assert oldest.finish is not None
        try:
            sums = oldest.finish()
        except Cancelled as error:
            if not self._ended(oldest, error):
                _fail([job], error)
        except Exception as error:  # whoever waits is told; the link is not trusted again
            self._lose(error)
        else:
            now_s = time.perf_counter()
            job.landed(oldest.portion, sums, now_s - max(oldest.begun_s, self._finished_s))
            self._finished_s = now_s
            if not self._ended(oldest, None) and job.has_landed:
                job.future.set_result(Written(job.sums, job.busy_s))

    def _ended(self, oldest: _UnderWay, error: Cancelled | None) -> bool:
        """It is under way no more. Whether its job had ended before; by an error it ends now."""
        with self._changed:
            self._under_way.popleft()
            job = oldest.job
            job.num_under_way -= 1
            was_over = job.over
            if error is not None:
                job.over = True
                self._drop(lambda each: each is job)
            self._changed.notify_all()
            return was_over

    def _lose(self, error: Exception) -> None:
        known = (
            error if isinstance(error, BatonError) else Internal(f"the transport broke: {error!r}")
        )
        with self._changed:
            is_first, self._lost = self._lost is None, known
        if is_first:
            self._close_wire()  # before a fence may return: nothing under way is written any more
        known = self._unclosed or known
        with self._changed:
            failed = list(dict.fromkeys(each.job for each in self._under_way))
            failed = [job for job in failed if not job.over and job not in self._jobs]
            failed += self._drop(lambda job: True)
            self._under_way.clear()
            self._changed.notify_all()
        _fail(failed, known)

    def _close_wire(self) -> None:
        try:
            self._wire.close()
        except Exception as error:
            log.exception("a link's wire could not be closed")
            self._unclosed = IntegrityError(
                f"the link could not be closed, something may still be written: {error!r}"
            )


def _raising(error: Exception) -> Finish:
    def finish() -> Sequence[int]:
        raise error

    return finish


def _fail(jobs: Iterable[_Job], error: BatonError) -> None:
    for job in jobs:
        job.future.set_exception(error)
