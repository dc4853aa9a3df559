"""Borrows prefixes from decode workers, who write them into this pool: orders of the role, performed.

    Borrow -> PrefixWanted -> reader writes -> PrefixLent -> verify -> Borrowed
                                            -> PrefixNotLent -------> Borrowed, not ok

    Fence  -> over at once, or once it is proved that the reader writes no more

The proof is the reader's word, the transport's, the death of its process, or a later stream of it, before
which it ends whatever it lent. All of it runs on the event loop, but the reading of blocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.errors import PeerLost
from baton.v1 import prefill_pb2
from baton.worker.verifier import Verifier
from kv_transfer.base import Receiver, TransferId
from kv_transfer.choose import Receivers
from kv_transfer.introduction import unpack_process
from kv_transfer.peer_process import PeerProcess
from prefill_worker.messages import Borrow, Borrowed, Event, FenceDone, Key, Order, ReaderId

log = logging.getLogger(__name__)

_TICK_S = 0.05


class Send(Protocol):
    """Tells a reader something, if its stream is still there."""

    def __call__(self, reader: ReaderId, event: prefill_pb2.PrefillEvent) -> None: ...


@dataclass(slots=True, eq=False)
class _Loan:
    id: TransferId
    blocks: Sequence[int]
    receiver: Receiver
    reader_stopped: bool = False  # by its word, or its death

    def is_settled(self) -> bool:
        """Whether it is proved that no byte of it can land any more."""
        revocation = self.receiver.revoke(self.id)
        return revocation.is_settled(writer_stopped=self.reader_stopped)


@dataclass(slots=True, eq=False)
class _Reader:
    """`process`: None where it is not of this machine, or dead."""

    peer: tuple[str, int]  # decode worker and incarnation
    process: PeerProcess | None
    has_left: bool = False

    @property
    def is_dead(self) -> bool:
        return self.process is not None and self.process.is_dead

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


class Borrower:
    """`post` tells the role, `send` the readers."""

    def __init__(
        self,
        receivers: Receivers,
        verifier: Verifier,
        post: Callable[[Event], None],
        send: Send,
    ) -> None:
        self._receivers = receivers
        self._verifier = verifier
        self._post = post
        self._send = send
        self._loans: dict[Key, _Loan] = {}  # that a reader may be writing
        self._fencing: set[Key] = set()  # of them, those that nobody wants any more
        self._readers: dict[ReaderId, _Reader] = {}
        self._verifying: set[asyncio.Task[None]] = set()

    def offer(self) -> bytes:
        """What readers must know to write into this worker's pool (msgpack)."""
        return self._receivers.offer()

    def add_reader(self, reader: ReaderId, hello: prefill_pb2.PrefillHello) -> None:
        """A stream of a decode worker has begun: what it lent on earlier ones is written no more."""
        peer = (hello.worker_id, hello.incarnation)
        for key in [key for key in self._loans if self._readers[key[0]].peer == peer]:
            self._stopped(key)
        self._readers[reader] = _Reader(peer, _watch(hello.process))

    def perform(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if isinstance(order, Borrow):
                self._borrow(order)

    def lent(self, key: Key, checksums: Sequence[int]) -> None:
        """The reader has written all of it, and writes no more."""
        loan = self._over(key)
        if loan is not None:
            verifying = asyncio.create_task(self._verify(key, loan.blocks, checksums))
            self._verifying.add(verifying)
            verifying.add_done_callback(self._verifying.discard)

    def not_lent(self, key: Key) -> None:
        """The reader writes no more of it."""
        if key in self._loans:
            self._stopped(key)

    def end(self, key: Key) -> None:
        """Nobody wants it any more: the role hears `FenceDone` once nothing of it can be written."""
        if key in self._loans:
            self._fencing.add(key)
        else:
            self._post(FenceDone(key))

    def remove_reader(self, reader: ReaderId) -> None:
        """Its stream has ended. It is watched for as long as it may be writing."""
        if known := self._readers.get(reader):
            known.has_left = True

    async def run(self) -> None:
        """Looks for proofs where a word may never come, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            for key, loan in list(self._loans.items()):
                if key in self._fencing:
                    loan.reader_stopped |= self._readers[key[0]].is_dead
                    self._settle(key)
                elif loan.reader_stopped:
                    self._settle(key)
            lending = {reader for reader, _ in self._loans}
            for reader, known in list(self._readers.items()):
                if known.has_left and reader not in lending:
                    self._readers.pop(reader).close()

    def close(self) -> None:
        self._verifier.close()
        self._receivers.close()
        for reader in self._readers.values():
            reader.close()

    def _borrow(self, order: Borrow) -> None:
        loan = _Loan(
            TransferId(order.request_id, order.key[1]),
            order.blocks,
            self._receivers[order.transport],
        )
        loan.receiver.open(loan.id, order.blocks)
        self._loans[order.key] = loan
        wanted = prefill_pb2.PrefixWanted(
            request_id=order.request_id,
            attempt=order.key[1],
            first_block=order.first_block,
            destination_blocks=order.blocks,
        )
        self._send(order.key[0], prefill_pb2.PrefillEvent(wanted=wanted))

    def _stopped(self, key: Key) -> None:
        """Its reader writes no more of it. What is still on its way is waited for, tick by tick."""
        self._loans[key].reader_stopped = True
        self._settle(key)

    def _settle(self, key: Key) -> None:
        """Tells the role that there is no prefix, once no byte of one can land."""
        if self._loans[key].is_settled() and self._over(key) is not None:
            self._post(Borrowed(key, ok=False))

    def _over(self, key: Key) -> _Loan | None:
        """Nothing of it is written any more. The loan, if somebody still wants it."""
        loan = self._loans.pop(key, None)
        if loan is None:
            return None
        loan.receiver.revoke(loan.id)
        if key in self._fencing:
            self._fencing.remove(key)
            self._post(FenceDone(key))
            return None
        return loan

    async def _verify(self, key: Key, blocks: Sequence[int], told: Sequence[int]) -> None:
        try:
            found = [
                await asyncio.wrap_future(self._verifier.checksum(block, checksum))
                for block, checksum in zip(blocks, told, strict=False)
            ]
        except Exception:
            log.exception("what was borrowed cannot be read, it is computed instead")
            self._post(Borrowed(key, ok=False))
            return
        ok = len(blocks) == len(told) and found == list(told)
        if not ok:
            log.warning("a prefix arrived wrong from a decode worker, it is computed instead")
        self._post(Borrowed(key, ok=ok))


def _watch(process: bytes) -> PeerProcess | None:
    named = unpack_process(process) if process else None
    try:
        return PeerProcess(named) if named is not None else None
    except PeerLost:
        return None  # its stream is about to end as well
