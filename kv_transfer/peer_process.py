"""Another process of this machine, and the proof that it is dead.

A dead process writes no more: its death lifts a quarantine where its word (`Fenced`) never came. A pid alone
proves nothing, since it is given away again; together with the start time it names one process for good, and
a pidfd, once opened, stays with it.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from pathlib import Path

from baton.errors import PeerLost


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process of one pid namespace. `start_ticks`: when it started, in clock ticks since boot."""

    pid: int
    start_ticks: int


def own_process_id() -> ProcessId:
    return ProcessId(os.getpid(), _start_ticks(os.getpid()))


class PeerProcess:
    """Watches one process until `close`. PeerLost where it has ended before.

    `fileno()` becomes readable when it has ended (for `loop.add_reader`): by then no thread of it runs and
    its mappings are gone.
    """

    def __init__(self, process: ProcessId) -> None:
        self.process = process
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError as error:
            raise PeerLost(f"process {process.pid} is gone") from error
        try:
            # The pidfd holds whoever has the pid now; only then can the start time tell who it is.
            is_it = _start_ticks(process.pid) == process.start_ticks and not self.is_dead
        except OSError:  # it ended between the two
            is_it = False
        if not is_it:
            os.close(self._pidfd)
            raise PeerLost(f"process {process.pid} is gone")

    def fileno(self) -> int:
        return self._pidfd

    @property
    def is_dead(self) -> bool:
        return self.wait(0.0)

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; whether it has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def close(self) -> None:
        """Stops watching; to be called once."""
        os.close(self._pidfd)


def _start_ticks(pid: int) -> int:
    # The second field is the command in brackets and may hold anything; the start time is field 22.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
