"""Ray is started again when it does not start and when it breaks; who needs it waits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from baton.cluster.call_pipe import Lost
from baton.cluster.ray_keeper import RayKeeper
from baton.errors import ConfigError, Unavailable


class Told(list[str]):
    """`back` is set when it is told that Ray is back."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()

    def append(self, line: str) -> None:
        super().append(line)
        if "is back" in line:
            self.back.set()


@asynccontextmanager
async def keeping(
    folder: Path, tries: Sequence[str], told: list[str], address: str = ""
) -> AsyncIterator[RayKeeper]:
    (folder / "tries").write_text(" ".join(tries))
    keeper = RayKeeper(address, folder, {}, told.append, driver="tests.fake_ray_driver")
    running = asyncio.create_task(keeper.run())
    try:
        async with asyncio.timeout(60):
            yield keeper
    finally:
        running.cancel()
        await asyncio.wait({running})
        keeper.close()


async def test_a_start_that_fails_is_tried_again_in_a_fresh_folder(tmp_path: Path) -> None:
    told: list[str] = []
    async with keeping(tmp_path, ["fail", "die", "work"], told) as keeper:
        await asyncio.wrap_future(keeper.is_up)
        assert await keeper.call("pid")
    assert len(told) == 2
    assert all("trying again" in line for line in told)


async def test_after_three_tries_the_start_has_failed(tmp_path: Path) -> None:
    async with keeping(tmp_path, ["fail"] * 3 + ["work"], []) as keeper:
        with pytest.raises(Unavailable, match="for the test"):
            await asyncio.wrap_future(keeper.is_up)


async def test_what_cannot_be_joined_is_not_tried_again(tmp_path: Path) -> None:
    told: list[str] = []
    async with keeping(tmp_path, [], told, address="h:1") as keeper:
        with pytest.raises(ConfigError, match="no Ray at h:1"):
            await asyncio.wrap_future(keeper.is_up)
    assert told == []


async def test_a_broken_ray_is_replaced_and_said_once(tmp_path: Path) -> None:
    told = Told()
    async with keeping(tmp_path, ["work", "fail", "fail", "work"], told) as keeper:
        await asyncio.wrap_future(keeper.is_up)
        first = await keeper.call("pid")
        waiting = asyncio.create_task(keeper.call("sleep"))
        await asyncio.sleep(0)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Lost):
            await waiting
        await told.back.wait()
        assert await keeper.call("pid") != first
    assert [line for line in told if "go on serving" in line] == told[:1]
    assert len(told) == 3, told  # it broke; the next does not start; one is back
