"""Words of an attempt that come twice, long after its end, or not at all, to both sides: as of a peer that
was cut off, or of one that has a defect. Each is to be without effect, or the end of the attempt that it
names.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

from prefill_worker.messages import Cancel, Confirm, Event, Fenced, Key, Open, Order, Resend
from prefill_worker.push import Arrived
from prefill_worker.service import PrefillService
from tests.faults.dealing import Fault
from tests.faults.mischief import Mischief

_LATE_S = 0.2


class LateWords:
    """Stands between the pusher and the service."""

    def __init__(
        self,
        mischief: Mischief,
        loop: asyncio.AbstractEventLoop,
        service: PrefillService,
        post: Callable[[Event], None],
    ) -> None:
        self._mischief = mischief
        self._loop = loop
        self._service = service
        self._post = post
        self._lock = threading.Lock()
        self._request_ids: dict[Key, str] = {}
        self._kept: dict[Key, Arrived] = {}  # a word that will come again

    def perform(self, orders: Sequence[Order]) -> None:
        """Hears which requests there are, before the pusher does."""
        for order in orders:
            if isinstance(order, Open):
                self._request_ids[order.key] = order.request_id

    def announce(self, key: Key, arrived: Arrived) -> None:
        self._service.announce(key, arrived)
        request_id = self._request_ids.get(key, "")
        if request_id and (directive := self._mischief.due(request_id, Fault.LATE_WORDS)):
            self._mischief.strike(Fault.LATE_WORDS, request_id)
            with self._lock:
                self._kept[key] = arrived
            if directive.at % 2:
                self._service.announce(key, arrived)

    def is_lost(self, event: Event) -> bool:
        """Whether the role never hears of this one."""
        if not isinstance(event, Confirm):
            return False
        request_id = self._request_ids.get(event.key, "")
        return bool(request_id and self._mischief.due(request_id, Fault.HOLD_EXPIRED))

    def ended(self, key: Key) -> None:
        """Nothing of it is read or written any more."""
        self._request_ids.pop(key, None)
        with self._lock:
            arrived = self._kept.pop(key, None)
        if arrived is not None:
            self._loop.call_soon_threadsafe(
                self._loop.call_later, _LATE_S, self._again, key, arrived
            )

    def _again(self, key: Key, arrived: Arrived) -> None:
        reader, number = key
        self._service.announce(key, arrived)
        self._service.send({reader: [Fenced(number)]})
        for event in (Resend(key, [arrived.first_block]), Confirm(key), Cancel(key)):
            self._post(event)
