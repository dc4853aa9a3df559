"""The prefill workers of one transport: started, killed, started again, woken when they were stopped.

They are forked from a process that has imported everything, so that a new one is there at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from multiprocessing import get_context

from baton.types import PoolId, PrefillChoice
from tests.faults.accounts import Accounts
from tests.faults.dealing import Fault
from tests.faults.prefill import Place, Struck, main
from tests.faults.proxy import Proxy

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.faults.prefill"])
_incarnations = count(1)


class Writer:
    """One prefill worker, in one life after the other. On the event loop. `wake_after_s`: how long it stays
    stopped. `proxy`: the way to it."""

    def __init__(
        self, place: Place, struck: Callable[[Struck], None], wake_after_s: Callable[[], float]
    ) -> None:
        self._place = place
        self._struck = struck
        self._wake_after_s = wake_after_s
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.Task[None] | None = None  # the latest restart
        self._accounts: asyncio.Future[Accounts] | None = None  # that were asked for
        self.choice: PrefillChoice | None = None  # None while it is dead

    async def start(self) -> None:
        self._address: asyncio.Future[str] = self._loop.create_future()
        self._place = replace(self._place, incarnation=next(_incarnations))
        self._pipe, theirs = _FORKS.Pipe()
        self._process = _FORKS.Process(target=main, args=(self._place, theirs), daemon=True)
        await asyncio.to_thread(self._process.start)
        theirs.close()
        self._loop.add_reader(self._pipe.fileno(), self._hear)
        self.proxy = Proxy(await self._address)
        await self.proxy.start()
        self.choice = PrefillChoice(
            PoolId(self._place.worker_id), self._place.incarnation, self.proxy.address
        )

    async def accounts(self) -> Accounts:
        """Whoever dies meanwhile holds nothing."""
        await self._restarted()
        self._accounts = self._loop.create_future()
        self._pipe.send("accounts")
        return await self._accounts

    async def close(self) -> None:
        await self._restarted()
        await self.proxy.close()
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        await asyncio.to_thread(self._process.join, 10)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"{self._place.worker_id} does not end")
        assert self._process.exitcode == 0, f"{self._place.worker_id}: {self._process.exitcode}"

    def _hear(self) -> None:
        try:
            word = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._loop.remove_reader(self._pipe.fileno())
            self.choice = None
            if self._accounts is not None and not self._accounts.done():
                self._accounts.set_result(Accounts(0, 0))
            self._again = self._loop.create_task(self._restart())
            return
        match word:
            case str():
                self._address.set_result(word)
            case Accounts():
                assert self._accounts is not None
                self._accounts.set_result(word)
            case Struck():
                self._struck(word)
                self._assist(word.fault)

    def _assist(self, fault: Fault) -> None:
        """What somebody else has to do about it."""
        if fault is Fault.STREAM_LOST:
            self.proxy.cut()
        elif fault is Fault.WRITER_STOPPED:
            pid = self._process.pid
            assert pid is not None
            self._loop.call_later(self._wake_after_s(), os.kill, pid, signal.SIGCONT)

    async def _restarted(self) -> None:
        if self._again is not None:
            await self._again

    async def _restart(self) -> None:
        self._pipe.close()
        await asyncio.to_thread(self._process.join)
        assert self._process.exitcode == -signal.SIGKILL, f"it ended by {self._process.exitcode}"
        await self.proxy.close()
        await self.start()
