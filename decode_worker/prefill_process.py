"""The process of a prefill worker, watched as far as it can be: on this machine its death is proof that it
writes no more.
"""

from __future__ import annotations

from baton.errors import PeerLost
from kv_transfer.introduction import unpack_process
from kv_transfer.peer_process import PeerProcess


class PrefillProcess:
    def __init__(self) -> None:
        self._watched: PeerProcess | None = None  # None: of another machine, not named yet, or dead
        self._was_dead = False

    def name(self, endpoint: bytes) -> None:
        """The process has said which one it is. It is the same one whenever it says so again."""
        if self._watched is not None or self._was_dead:
            return
        process = unpack_process(endpoint)
        try:
            self._watched = PeerProcess(process) if process is not None else None
        except PeerLost:
            self._was_dead = True

    @property
    def is_dead(self) -> bool:
        return self._was_dead or (self._watched is not None and self._watched.is_dead)

    def close(self) -> None:
        if self._watched is not None:
            self._watched.close()
