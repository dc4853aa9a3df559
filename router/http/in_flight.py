"""The requests that the HTTP face answers now: counted with those of gRPC, and cut with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext

from baton.errors import Draining

Counted = Callable[[], AbstractContextManager[None]]


class InFlight:
    """`counted` is entered for every request while it lasts, and refuses it by raising. `is_draining`:
    whether the router takes none any more."""

    def __init__(
        self, counted: Counted = nullcontext, is_draining: Callable[[], bool] = lambda: False
    ) -> None:
        self.is_draining = is_draining
        self._counted = counted
        self._limits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """For the length of a request. Raises Draining in it when it is cut."""
        limit = asyncio.timeout(None)
        with self._counted():
            self._limits.add(limit)
            try:
                async with limit:
                    yield
            except TimeoutError:
                if not limit.expired():
                    raise
                raise Draining("this router is leaving; any other one serves the request") from None
            finally:
                self._limits.discard(limit)

    def cut(self) -> None:
        """The time to end by themselves is over."""
        now_s = asyncio.get_running_loop().time()
        for limit in self._limits:
            limit.reschedule(now_s)
