"""Keeps a way into Ray open: starts a Ray of our own, or joins one, and does so again whenever it breaks.

Workers do not need Ray to serve, only to be started. So when Ray breaks they go on, and what needs Ray waits
here until there is one again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baton.cluster.call_pipe import CallPipe, Lost
from baton.cluster.ray_types import OUTLIVING
from baton.errors import BatonError, ConfigError, Unavailable

_NUM_FIRST_TRIES = 3
_START_S, _JOIN_S, _LEAVE_S = 60.0, 30.0, 10.0
_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 15.0

_OF_OUR_OWN = {
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would let anything else on the machine delay a step
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",  # CUDA IPC needs peers' GPUs visible
    **OUTLIVING,
}


@dataclass(slots=True)
class RayKeeper:
    """`address`: of a Ray to join; empty for one of our own. `folder`: for all that Ray writes.
    `environment`: what Ray's processes, and so the actors of our own, have beside this process's. `tell`
    gets one line at a time."""

    address: str
    folder: Path
    environment: Mapping[str, str]
    tell: Callable[[str], None]
    driver: str = "baton.cluster.ray_driver"
    is_up: Future[None] = field(default_factory=Future)  # for the first time, or why it cannot be
    _up: asyncio.Event = field(default_factory=asyncio.Event)
    _driver: CallPipe | None = None
    _num_starts: int = 0

    def __post_init__(self) -> None:
        ours = {} if self.address else {"RAY_AUTH_TOKEN": secrets.token_hex(32), **_OF_OUR_OWN}
        self.environment = {**ours, **os.environ, **self.environment}

    async def call(self, method: str, *arguments: object) -> Any:
        """What `RayDriver.<method>` answers, once Ray is up. Raises Lost where it breaks meanwhile."""
        await self._up.wait()
        assert self._driver is not None
        return await asyncio.wrap_future(self._driver.call(method, *arguments))

    async def run(self) -> None:
        """Until cancelled. Ends with an error where the first start fails for good."""
        try:
            await self._start_first()
        except Exception as error:
            self.is_up.set_exception(error)
            return
        self.is_up.set_result(None)
        while True:
            why = await self._broken()
            self._up.clear()
            self.tell(
                f"Ray: {why}; workers go on serving, but none can be started before "
                f"{'it is joined again' if self.address else 'another Ray runs'}"
            )
            await self._end(0.0)
            await self._start_again()
            self.tell("Ray is back: workers can be started again")

    def close(self) -> None:
        """Ends a Ray of our own with all that runs in it; leaves one that was joined."""
        if self._driver is not None:
            self._driver.end(_LEAVE_S)
            self._driver = None

    async def _start_first(self) -> None:
        for left in reversed(range(_NUM_FIRST_TRIES)):
            try:
                return await self._start()
            except ConfigError:
                raise
            except Unavailable as error:
                if not left:
                    raise
                self.tell(f"{error}; trying again in a fresh folder")

    async def _start_again(self) -> None:
        backoff_s = _BACKOFF_S
        while True:
            try:
                return await self._start()
            except BatonError as error:
                if backoff_s == _BACKOFF_S:  # said once
                    self.tell(f"{error}; trying again until it works")
            await asyncio.sleep(backoff_s)
            backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s)

    async def _start(self) -> None:
        """Raises ConfigError or Unavailable; then nothing of it is left."""
        self._num_starts += 1
        log = self.folder / "ray.log"
        self._driver = await asyncio.to_thread(CallPipe, self.driver, self.environment, log)
        if self.address:
            asked, timeout_s = self._driver.call("join", self.address), _JOIN_S
        else:  # a folder of its own: what an earlier Ray left would be taken for this one's
            asked = self._driver.call("start", self.folder / f"r{self._num_starts}")
            timeout_s = _START_S
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wrap_future(asked)
        except TimeoutError as error:
            await self._end(0.0)
            if self.address:
                raise ConfigError(
                    f"no Ray answers at {self.address} within {timeout_s:g} s", field="ray_address"
                ) from error
            raise Unavailable(f"Ray did not start within {timeout_s:g} s") from error
        except Lost as error:
            await self._end(0.0)
            raise Unavailable(f"Ray did not start: its client ended; see {log}") from error
        except BatonError:
            await self._end(0.0)
            raise
        self._up.set()

    async def _broken(self) -> str:
        assert self._driver is not None
        try:
            return str(await asyncio.wrap_future(self._driver.call("wait_broken")))
        except Lost:
            return "our way into it has ended"
        except BatonError as error:
            return str(error)

    async def _end(self, grace_s: float) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await asyncio.to_thread(driver.end, grace_s)
