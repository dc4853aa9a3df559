"""Peers that stop or kill themselves at a point of a transfer, and readers to be killed: processes that are
there at once, because they are forked from one that has imported everything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baton.errors import BatonError
from kv_transfer.peer_process import ProcessId, own_process_id
from tests.transfer.points import BLOCKS, LAYOUT, POINTS, TRANSFER, At, Writers
from tests.transfer.worlds import make_decode

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.transfer.forked"])


class Peer:
    """One process; `role` runs in it with its end of the pipe. It begins with its process's identity."""

    def __init__(self, role: Callable[[Connection], None]) -> None:
        self._pipe, theirs = _FORKS.Pipe()
        self._process = _FORKS.Process(target=role, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self.id: ProcessId = self.hear()

    def say(self, word: object) -> None:
        self._pipe.send(word)

    def hear(self) -> Any:
        assert self._pipe.poll(30), "it says nothing"
        return self._pipe.recv()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.id.pid, number)

    @property
    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.id.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def is_dead(self) -> bool:
        return not self._process.is_alive()

    def wait(self) -> None:
        self._process.join(30)
        assert self._process.exitcode == -signal.SIGKILL

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def writer(kind: str, offer: bytes, point: str, number: signal.Signals) -> Peer:
    """Two prefill ranks that write the payload and at `point` send themselves the signal. What has become
    of it is said when it is over, "fenced" after any word."""
    return Peer(partial(_write, kind, offer, point, number))


def reader(kind: str) -> Peer:
    """A decode rank: says its offer, and to any word the checksums of the blocks."""
    return Peer(partial(_read, kind))


def _write(kind: str, offer: bytes, point: str, number: signal.Signals, pipe: Connection) -> None:
    pipe.send(own_process_id())
    hook = At(POINTS[point], lambda: os.kill(os.getpid(), number))
    writers = Writers(kind, offer, hook)
    try:
        writers.open()
        pipe.send(writers.write())
    except BatonError as error:
        pipe.send(type(error).__name__)
    pipe.recv()
    writers.fence()
    pipe.send("fenced")
    pipe.recv()


def _read(kind: str, pipe: Connection) -> None:
    pipe.send(own_process_id())
    decode = make_decode(kind, LAYOUT)
    decode.receiver.open(TRANSFER, BLOCKS)
    pipe.send(decode.receiver.offer())
    while True:
        pipe.recv()
        pipe.send([decode.pool.checksum(block) for block in BLOCKS])
