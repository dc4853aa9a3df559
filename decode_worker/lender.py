"""Lends prefixes: writes blocks of this worker's pool into the pool of one prefill worker, where it lacks
them. The same seam as the hand-off, with the roles swapped.

A loan ends in one of two ways, once: written whole, or ended before. After either nothing is read or
written for it any more. Knows blocks and links, neither requests nor words.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from baton.errors import BatonError, PeerLost
from kv_transfer.base import Link, TransferId, Write, Written
from kv_transfer.choose import Senders


class Lender:
    """To the pool that made `offer`. Nothing here blocks the caller."""

    def __init__(self, senders: Senders, offer: bytes, num_layers: int) -> None:
        self._senders = senders
        self._offer = offer
        self._num_layers = num_layers
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="lend")
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._closed = False

    def connect(self) -> Future[str]:
        """Done with the transport's name once there is a link: PeerLost or IncompatiblePeer where none
        can be had."""
        return self._threads.submit(self._connect)

    def lend(
        self, loan: TransferId, sources: Sequence[int], destinations: Sequence[int]
    ) -> Future[Written]:
        """Writes all layers of the blocks. Done when they lie there; Cancelled where it was ended."""
        link = self._link
        try:
            if link is None:
                raise PeerLost("there is no link to lend over")
            link.open(loan, destinations)
        except BatonError as error:
            failed: Future[Written] = Future()
            failed.set_exception(error)
            return failed
        return link.write(loan, Write(0, sources, destinations, self._num_layers))

    def end(self, loan: TransferId) -> Future[None]:
        """Done when nothing is read or written for it any more."""
        return self._threads.submit(self._end, loan)

    def close(self) -> None:
        """Ends every loan, and waits for that."""
        with self._lock:
            link, self._link = self._link, None
            self._closed = True
        if link is not None:
            link.close()
        self._threads.shutdown()

    def _connect(self) -> str:
        transport, link = self._senders.connect(self._offer)
        with self._lock:
            if not self._closed:
                self._link = link
                return transport
        link.close()
        raise PeerLost("the prefill worker was lost meanwhile")

    def _end(self, loan: TransferId) -> None:
        link = self._link
        if link is not None:
            link.fence(loan)
