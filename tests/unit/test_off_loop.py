"""Work off the event loop: in turn, bounded, and never begun for who has gone."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from baton.errors import InvalidArgument, Overloaded
from router.off_loop import SHORT, OffLoop


class Gated:
    """One thread, which stands still until `go`; remembers who was done in which order."""

    def __init__(self, max_waiting: int = 1 << 20) -> None:
        self.done: list[str] = []
        self.go = threading.Event()
        self.off_loop = OffLoop(num_threads=1, max_waiting=max_waiting)

    def ask(self, tenant: str, size: int = SHORT) -> asyncio.Task[str]:
        return asyncio.create_task(
            self.off_loop.run(partial(self._work, tenant), size, tenant=tenant)
        )

    def _work(self, tenant: str) -> str:
        self.go.wait()
        self.done.append(tenant)
        return tenant


async def test_what_is_short_is_done_here_and_what_is_long_is_done_elsewhere() -> None:
    off_loop, here = OffLoop(), threading.get_ident()
    assert await off_loop.run(threading.get_ident, SHORT - 1) == here
    assert await off_loop.run(threading.get_ident, SHORT) != here


async def test_tenants_take_turns() -> None:
    gated = Gated()
    tasks = [gated.ask("many") for _ in range(5)]
    await asyncio.sleep(0)
    tasks.append(gated.ask("one"))
    await asyncio.sleep(0)
    gated.go.set()
    assert await asyncio.gather(*tasks) == ["many"] * 5 + ["one"]
    assert gated.done.index("one") <= 2


async def test_who_goes_while_waiting_is_forgotten_and_who_goes_later_frees_the_thread() -> None:
    gated = Gated()
    running, waiting, last = gated.ask("a"), gated.ask("b"), gated.ask("c")
    await asyncio.sleep(0)
    running.cancel()
    waiting.cancel()
    await asyncio.wait((running, waiting))
    gated.go.set()
    assert await last == "c"
    assert gated.done == ["a", "c"]


async def test_no_more_waits_than_may_but_one_always_does() -> None:
    gated = Gated(max_waiting=2 * SHORT)
    tasks = [gated.ask("a"), gated.ask("b", size=10 * SHORT)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await gated.ask("c")
    gated.go.set()
    assert await asyncio.gather(*tasks) == ["a", "b"]
    assert await gated.ask("c") == "c"


async def test_an_error_is_raised_to_who_asked() -> None:
    def refuse() -> None:
        raise InvalidArgument("no", field="text")

    with pytest.raises(InvalidArgument):
        await OffLoop().run(refuse, SHORT)
