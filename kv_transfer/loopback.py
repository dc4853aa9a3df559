"""Both sides in one process: the transport of tests, and of a worker that prefills for itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from weakref import WeakValueDictionary

from baton.errors import Cancelled, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import Revocation, TransferId, Write
from kv_transfer.layout import plan
from kv_transfer.link import Finish, Flow, OrderedLink
from kv_transfer.pool import Pool, copy_blocks

_numbers = itertools.count(1)
_receivers: WeakValueDictionary[int, LoopbackReceiver] = WeakValueDictionary()


class LoopbackReceiver:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.lock = threading.Lock()  # held while bytes are written
        self.transfers: set[TransferId] = set()
        self._number = next(_numbers)
        _receivers[self._number] = self

    def offer(self) -> bytes:
        return wire_format.pack({"number": self._number})

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        self.transfers.add(transfer)

    def revoke(self, transfer: TransferId) -> Revocation:
        with self.lock:
            self.transfers.discard(transfer)
        return Revocation.PROVEN

    def close(self) -> None:
        _receivers.pop(self._number, None)


class LoopbackSender:
    def __init__(self, pool: Pool, *, checksums: bool = True) -> None:
        self._pool = pool
        self._checksums = checksums

    def connect(self, offer: bytes) -> OrderedLink:
        number = wire_format.unpack(offer, number=int)["number"]
        return OrderedLink(_LoopbackWire(self._pool, number, self._checksums), f"loopback-{number}")


class _LoopbackWire:
    def __init__(self, source: Pool, number: int, checksums: bool) -> None:
        self._source = source
        self._number = number
        self._checksums = checksums
        destination = self._receiver().pool.layout
        self._slices = plan(source.layout, destination)
        self.flow = Flow(destination.piece_bytes)

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        receiver = self._receiver()
        with receiver.lock:
            if transfer not in receiver.transfers:
                raise Cancelled("the receiver has revoked the transfer")
            sums = copy_blocks(
                self._source, receiver.pool, self._slices, write, checksums=self._checksums
            )
        return lambda: sums

    def close(self) -> None:
        """Nothing is held."""

    def _receiver(self) -> LoopbackReceiver:
        receiver = _receivers.get(self._number)
        if receiver is None:
            raise PeerLost(f"receiver {self._number} is closed")
        return receiver
