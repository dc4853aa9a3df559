"""A worker as the controller sees it: a process that can be watched and killed, which Ray has started.

Where it runs on this machine its death is seen by its pidfd, whatever has become of Ray by then, and killing
is a signal; of one on another machine only Ray can tell and end it. Draining is a gRPC call.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from baton.cluster import confirmed_kill, probe
from baton.cluster.call_pipe import Lost
from baton.cluster.ray_keeper import RayKeeper
from baton.cluster.ray_types import ActorOptions
from baton.errors import BatonError, Unavailable, from_code
from baton.worker.actor import Description, Outcome

_LEAVE_S = 5.0
_ASK_S = 1.0
_WHY_S = 0.2  # for Ray's word on why a process ended


class WorkerProcess:
    """A living actor that serves. `is_local`: its process is on this machine."""

    def __init__(
        self, ray: RayKeeper, options: ActorOptions, description: Description, is_local: bool
    ) -> None:
        self.pid = description.pid
        self._ray = ray
        self._options = options
        self._host = description.launch.config.host
        self._is_local = is_local
        self._address = ""  # from when it is registered
        self._outcome: asyncio.Task[Outcome] = asyncio.create_task(self._serve())
        # When the process is seen to have ended, nobody asks any more what Ray says to it.
        self._outcome.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def serves(self) -> bool:
        if not self._address:
            member = await probe.find_worker(self._host.routers, self._host.worker_id, self.pid)
            if member is None:
                return False
            self._address = member.info.address
        return await probe.serves(self._address)

    async def lives(self) -> bool:
        told = self._outcome
        if told.done() and not told.cancelled() and told.exception() is None:
            return True  # it has served, and `ended` sees to it that its process goes
        return await probe.lives(self._address)

    async def ended(self) -> BatonError | None:
        gone = asyncio.create_task(self._gone())
        both: set[asyncio.Task[Any]] = {self._outcome, gone}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() or self._outcome.exception() is not None:
                # What Ray says without its end is about Ray; with it, it is why.
                await asyncio.wait(both, timeout=_WHY_S)
                is_why = gone.done() and self._outcome.done()
                await gone
                if not is_why:
                    self._outcome.cancel()
                    return Unavailable("its process ended")
        finally:
            gone.cancel()
        try:
            outcome = self._outcome.result()
        except BatonError as error:
            return error
        await self._leave()
        if not outcome.code:
            return None
        return from_code(outcome.code, outcome.message, field=outcome.field)

    async def drain(self) -> None:
        if not self._address:
            raise Unavailable("it is not registered")
        await probe.drain_worker(self._address, self._host.drain_grace_s)

    async def kill(self) -> None:
        if self._is_local:
            await asyncio.to_thread(confirmed_kill.kill_confirmed, self.pid)
            return
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._ray.call("kill", self._options)
        except (TimeoutError, Lost) as error:
            raise Unavailable("cannot be killed while Ray is gone") from error
        await self._gone()

    async def _serve(self) -> Outcome:
        """How it ended. Of a worker on another machine that is asked again when Ray is back."""
        while True:
            try:
                outcome: Outcome = await self._ray.call("serve", self._options)
            except Lost:
                if self._is_local and not self._options.detached:
                    raise Unavailable("its process ended") from None  # which no later Ray knows
            else:
                return outcome

    async def _gone(self) -> None:
        """Waits for the end of the process. On another machine Ray tells of it, or of one that it has
        lost, as a Ray that was started anew has them all; then the process's own word counts."""
        if self._is_local:
            await confirmed_kill.ended(self.pid)
            return
        await asyncio.wait({self._outcome})
        if self._outcome.exception() is None or not self._address:
            return
        while True:
            if not await probe.lives(self._address):
                return
            await asyncio.sleep(_ASK_S)

    async def _leave(self) -> None:
        """It has served; its process exits, with 0 where it can."""
        try:
            async with asyncio.timeout(_LEAVE_S):
                with contextlib.suppress(Lost, BatonError):  # then it ends by itself
                    await self._ray.call("terminate", self._options)
                if self._is_local:
                    await confirmed_kill.ended(self.pid)
        except TimeoutError:
            if self._is_local:
                await self.kill()
