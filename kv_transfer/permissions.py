"""Which transfers may write into a pool, and what of them may still land: for transports whose receiver is
asked before each portion. Where nothing was admitted that has not ended, nothing can land: that is proof.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from baton.errors import IncompatiblePeer
from kv_transfer.base import Revocation, TransferId


class Permissions:
    """Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below
        self._open: dict[TransferId, frozenset[int]] = {}
        self._num_admitted: Counter[TransferId] = Counter()  # portions that have not ended

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        with self._lock:
            self._open[transfer] = frozenset(blocks)

    def revoke(self, transfer: TransferId) -> Revocation:
        """Admits no more of it. Every portion ends, at the latest with its writer's connection."""
        with self._lock:
            self._open.pop(transfer, None)
            landing = self._num_admitted[transfer] > 0
        return Revocation.LANDING if landing else Revocation.PROVEN

    def admit(self, transfer: TransferId, blocks: Sequence[int]) -> bool:
        """Whether a portion may be written into `blocks`; then `end` is owed. IncompatiblePeer where they
        are not the transfer's."""
        with self._lock:
            allowed = self._open.get(transfer)
            if allowed is None:
                return False
            if not allowed.issuperset(blocks):
                raise IncompatiblePeer("are not the transfer's", field="destination_blocks")
            self._num_admitted[transfer] += 1
            return True

    def end(self, transfer: TransferId) -> None:
        """Nothing of one admitted portion can land any more."""
        with self._lock:
            self._num_admitted[transfer] -= 1
            if not self._num_admitted[transfer]:
                del self._num_admitted[transfer]
