"""The prefixes that this worker lends to one prefill worker: which are lent, and how each loan ends.

    open --PrefixWanted--> writing --written, failed, ended--> over: PrefixLent or PrefixNotLent
     +----- the hand-off is over, nothing was wanted ---------> over

Whatever ends a loan, the role hears `LendOver` once, and from then on may let the blocks go. Before a stream
is opened again every loan of the one before is over: a prefill worker may rely on that. All of it runs on the
event loop, but the writing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from baton.errors import BatonError, Cancelled, IntegrityError
from baton.v1 import prefill_pb2
from decode_worker import prefill_words
from decode_worker.lender import Lender
from decode_worker.messages import AskPrefill, LendOver
from kv_transfer.base import TransferId, Written

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Loan:
    ask: AskPrefill
    writing: bool = False

    @property
    def id(self) -> TransferId:
        return TransferId(self.ask.request_id, self.ask.transfer)


class Loans:
    """`make` makes the way to the pool of an offer; `post` tells the role, `send` the prefill worker. `fail`
    hears that a loan may be written for ever: only this process's end proves that it is not."""

    def __init__(
        self,
        make: Callable[[bytes], Lender],
        post: Callable[[LendOver], None],
        send: Callable[[prefill_pb2.PrefillCommand], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._make = make
        self._post = post
        self._send = send
        self._fail = fail
        self._loans: dict[int, _Loan] = {}
        self._offer = b""
        self._lender: Lender | None = None
        self._connected: asyncio.Future[str] | None = None
        self._closing: set[asyncio.Future[None]] = set()

    def welcome(self, offer: bytes) -> None:
        """A stream is up: so is soon the way to lend by. `offer` is empty where the prefill worker borrows
        nothing."""
        self._offer = offer
        if offer:
            self._connect()

    def open(self, ask: AskPrefill) -> None:
        """From now on what `ask` lends may be wanted."""
        if ask.lent_blocks:
            self._loans[ask.transfer] = _Loan(ask)

    async def transport(self) -> str:
        """By what loans travel; empty where they cannot."""
        if not self._offer:
            return ""
        connected = self._connected or self._connect()
        try:
            return await asyncio.shield(connected)
        except BatonError as error:
            log.warning("nothing can be lent: %s", error)
            return ""

    def _connect(self) -> asyncio.Future[str]:
        self._lender = self._make(self._offer)
        self._connected = asyncio.wrap_future(self._lender.connect())
        self._connected.add_done_callback(_retrieve)
        return self._connected

    def wanted(self, message: prefill_pb2.PrefixWanted) -> None:
        loan = self._loans.get(message.attempt)
        first, destinations = message.first_block, list(message.destination_blocks)
        sources = loan.ask.lent_blocks[first : first + len(destinations)] if loan else ()
        if loan is None or loan.writing or self._lender is None or len(sources) < len(destinations):
            self._send(prefill_words.not_lent(message.request_id, message.attempt))
            return
        loan.writing = True
        loop = asyncio.get_running_loop()

        def done(written: Future[Written]) -> None:
            loop.call_soon_threadsafe(self._written, loan, written)

        self._lender.lend(loan.id, sources, destinations).add_done_callback(done)

    def end(self, transfer: int) -> None:
        """The hand-off is over, well or badly."""
        loan = self._loans.get(transfer)
        if loan is None:
            return
        if loan.writing and self._lender is not None:
            self._lender.end(loan.id)  # and then it is written no more: see `_written`
        elif not loan.writing:
            self._over(loan)

    async def close(self) -> None:
        """The stream is lost: nothing of it is read or written when this returns."""
        self._offer = b""
        self._let_go()
        if self._closing:
            await asyncio.wait(self._closing)

    def _let_go(self) -> None:
        """Ends every loan that is being written; the next one needs a new link."""
        lender, self._lender, self._connected = self._lender, None, None
        if lender is not None:
            closing = asyncio.get_running_loop().run_in_executor(None, lender.close)
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Future[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            self._fail(error)

    def _written(self, loan: _Loan, written: Future[Written]) -> None:
        error = written.exception()
        if isinstance(error, IntegrityError):
            self._fail(error)
            return
        if error is None:
            self._send(prefill_words.lent(loan.ask, written.result().checksums))
        else:
            if not isinstance(error, Cancelled):
                log.warning("a prefix was not lent: %s", error)
                self._let_go()
            self._send(prefill_words.not_lent(loan.ask.request_id, loan.ask.transfer))
        self._over(loan)

    def _over(self, loan: _Loan) -> None:
        del self._loans[loan.ask.transfer]
        self._post(LendOver(loan.ask.transfer))


def _retrieve(connected: asyncio.Future[str]) -> None:
    """Whoever lends hears how it failed; nobody may."""
    if not connected.cancelled():
        connected.exception()
