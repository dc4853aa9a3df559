"""Somebody who is told, on the link's own thread, how far the writing of a transfer has come; and who may do
there whatever a test needs: end this process or the peer's, stop one of them, wait, raise.

    begin ---> BEFORE ---> inner begin ---> UNDER_WAY           bytes may be on their way
    finish --> inner finish ---> LANDED ---> future             they lie there, nobody has been told
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from kv_transfer.base import Link, TransferId, Write
from kv_transfer.link import Finish, Flow, OrderedLink, Wire


class Moment(Enum):
    """Of one portion."""

    BEFORE = auto()
    UNDER_WAY = auto()
    LANDED = auto()


Hook = Callable[[Moment, TransferId], None]


class HookedWire:
    def __init__(self, wire: Wire, hook: Hook, flow: Flow) -> None:
        self.flow = flow
        self._wire = wire
        self._hook = hook

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        self._hook(Moment.BEFORE, transfer)
        inner = self._wire.begin(transfer, write)
        self._hook(Moment.UNDER_WAY, transfer)

        def finish() -> Sequence[int]:
            sums = inner()
            self._hook(Moment.LANDED, transfer)
            return sums

        return finish

    def close(self) -> None:
        self._wire.close()


def hook_into(link: Link, hook: Hook, flow: Flow | None = None) -> None:
    """Before anything is written over `link`. `flow`: how it cuts its writes from now on."""
    assert isinstance(link, OrderedLink)
    link._flow = flow or link._flow
    link._wire = HookedWire(link._wire, hook, link._flow)
