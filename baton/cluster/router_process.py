"""A router as the controller sees it: a plain process of this machine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from baton.cluster import confirmed_kill, probe
from baton.cluster.process import Process
from baton.errors import BatonError, Unavailable


@dataclass(frozen=True, slots=True)
class RouterProcess:
    process: Process
    address: str

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    async def serves(self) -> bool:
        return await probe.serves(self.address)

    async def lives(self) -> bool:
        return await probe.lives(self.address)

    async def ended(self) -> BatonError | None:
        await confirmed_kill.ended(self.pid)
        code = self.process.popen.wait()
        return None if code == 0 else Unavailable(f"exit code {code}")

    async def drain(self) -> None:
        self.process.popen.terminate()

    async def kill(self) -> None:
        await asyncio.to_thread(confirmed_kill.kill_confirmed, self.pid)
