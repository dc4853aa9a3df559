"""A decode worker's side of the hand-off: orders of the role go to the prefill workers that they name.

    role --AskPrefill, Abandon--> HandOffs --PrefillStart, Cancel, Confirm--> P      one link per P
    role <--FirstTokens, HandOffDone, HandOffFailed, Fenced-- HandOffs <--BlocksSent, Fenced...-- P

What has arrived, what is right and what must not be reused is decided by `kv_transfer.transfer.incoming`;
a `PrefillLink` performs it. All of it runs on the event loop, but the reading of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.types import PoolId, PrefillChoice
from decode_worker.decode_side import DecodeSide
from decode_worker.messages import Abandon, AskPrefill, Order
from decode_worker.prefill_link import PrefillLink

_Name = tuple[PoolId, int]  # of one incarnation of a prefill pool


class HandOffs:
    """`perform` is called on the event loop."""

    def __init__(self, side: DecodeSide) -> None:
        self._side = side
        self._links: dict[_Name, PrefillLink] = {}
        self._link_of: dict[int, PrefillLink] = {}  # by transfer

    def perform(self, orders: Sequence[Order]) -> None:
        for order in orders:
            match order:
                case AskPrefill():
                    link = self._link(order.prefill)
                    self._link_of[order.transfer] = link
                    link.ask(order)
                case Abandon(transfer):
                    if asked := self._link_of.get(transfer):
                        asked.abandon(transfer)

    def meet(self, prefill: PrefillChoice) -> None:
        """Opens the link to a prefill worker that may soon be asked. One that cannot be opened is tried again
        when it is needed. On the event loop."""
        self._link(prefill)

    async def close(self) -> None:
        for link in list(self._links.values()):
            await link.close()
        self._side.verifier.close()
        self._side.receivers.close()

    def _link(self, prefill: PrefillChoice) -> PrefillLink:
        name = (prefill.pool, prefill.incarnation)
        if name not in self._links:
            self._links[name] = PrefillLink(self._side, prefill, self._forget, self._unlink)
        return self._links[name]

    def _forget(self, transfer: int) -> None:
        self._link_of.pop(transfer, None)

    def _unlink(self, prefill: PrefillChoice) -> None:
        del self._links[prefill.pool, prefill.incarnation]
