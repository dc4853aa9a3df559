"""What befalls a prefill worker's links: it strikes where the id of a request says so, once per request.

Runs in the prefill worker's own process, on the thread of a link; so a kill or a stop falls exactly between
two moments of a write, whatever else the process is doing.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from baton.errors import PeerLost
from kv_transfer.base import Link, TransferId, Write, Written
from kv_transfer.choose import Senders
from kv_transfer.faults import Faults
from kv_transfer.pool import Pool
from tests.faults.dealing import Directive, Fault
from tests.transfer.hooked import Moment, hook_into

_SLOW_S = 0.05  # for each portion: three make a block, and must stay below the progress timeout

Tell = Callable[[Fault, str], None]


@dataclass(slots=True)
class Mischief:
    """`tell` hears of every fault before it strikes, with the request's id."""

    worker_id: str
    tell: Tell
    _num_moments: Counter[TransferId] = field(default_factory=Counter)
    _struck: set[str] = field(default_factory=set)

    def due(self, request_id: str, *faults: Fault) -> Directive | None:
        """What this worker is to suffer from it, if that is one of `faults` and has not struck."""
        directive = Directive.of(request_id)
        mine = directive.worker_id == self.worker_id and directive.fault in faults
        return directive if mine and request_id not in self._struck else None

    def strike(self, fault: Fault, request_id: str) -> None:
        self._struck.add(request_id)
        self.tell(fault, request_id)

    def on_wire(self, moment: Moment, transfer: TransferId) -> None:
        directive = Directive.of(transfer.request_id)
        if directive.worker_id != self.worker_id:
            return
        if directive.fault is Fault.SLOW_LINK and moment is Moment.BEFORE:
            if self.due(transfer.request_id, Fault.SLOW_LINK):
                self.strike(Fault.SLOW_LINK, transfer.request_id)
            time.sleep(_SLOW_S)
        num_before = self._num_moments[transfer]
        self._num_moments[transfer] += 1
        if num_before == directive.at:
            self._strike_on_wire(transfer.request_id)

    def _strike_on_wire(self, request_id: str) -> None:
        sudden = (Fault.WRITER_KILLED, Fault.WRITER_STOPPED, Fault.LINK_LOST, Fault.STREAM_LOST)
        directive = self.due(request_id, *sudden)
        if directive is None:
            return
        self.strike(directive.fault, request_id)
        match directive.fault:
            case Fault.WRITER_KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            case Fault.WRITER_STOPPED:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Fault.LINK_LOST:
                raise PeerLost("the link was cut on purpose")
            case _:
                pass  # whoever is told cuts the stream


class MischievousSenders:
    """As `Senders`, with faults on every link."""

    def __init__(self, senders: Callable[[Pool], Senders], pool: Pool, mischief: Mischief) -> None:
        self._senders = senders
        self._pool = pool
        self._mischief = mischief

    def connect(self, offer: bytes) -> tuple[str, Link]:
        transport, link = self._senders(self._pool).connect(offer)
        hook_into(link, self._mischief.on_wire)
        return transport, _FlippingLink(self, link, offer, self._mischief)

    def spoiling(self, offer: bytes) -> Link:
        """A link over which one byte of every block arrives wrong."""
        senders = Faults(flip_in_flight=1.0).senders(self._pool, self._senders)
        return senders.connect(offer)[1]


class _FlippingLink:
    """Sends one write of a transfer over a link that spoils it. Writes of both links may overlap, which is
    nothing to whoever adds up checksums."""

    def __init__(
        self, senders: MischievousSenders, link: Link, offer: bytes, mischief: Mischief
    ) -> None:
        self._senders = senders
        self._link = link
        self._offer = offer
        self._mischief = mischief
        self._spoiling: Link | None = None  # made when it is needed
        self._blocks: dict[TransferId, Sequence[int]] = {}

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        self._link.open(transfer, blocks)
        if self._mischief.due(transfer.request_id, Fault.FLIP_IN_FLIGHT):
            self._blocks[transfer] = blocks

    def write(self, transfer: TransferId, write: Write) -> Future[Written]:
        flips = self._mischief.due(transfer.request_id, Fault.FLIP_IN_FLIGHT)
        if flips is None or transfer not in self._blocks:
            return self._link.write(transfer, write)
        self._mischief.strike(Fault.FLIP_IN_FLIGHT, transfer.request_id)
        if self._spoiling is None:
            self._spoiling = self._senders.spoiling(self._offer)
        self._spoiling.open(transfer, self._blocks[transfer])
        return self._spoiling.write(transfer, write)

    def fence(self, transfer: TransferId) -> None:
        self._blocks.pop(transfer, None)
        self._link.fence(transfer)
        if self._spoiling is not None:
            self._spoiling.fence(transfer)

    def close(self) -> None:
        self._link.close()
        if self._spoiling is not None:
            self._spoiling.close()
