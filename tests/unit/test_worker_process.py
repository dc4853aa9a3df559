"""A worker has ended when its process has, whatever Ray says of it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from baton.cluster import probe
from baton.cluster.call_pipe import Lost
from baton.cluster.ray_keeper import RayKeeper
from baton.cluster.ray_types import ActorOptions
from baton.cluster.worker_process import WorkerProcess
from baton.errors import Unavailable
from baton.worker.actor import Description, Launch, Outcome
from decode_worker.config import DecodeConfig

ADDRESS = "192.0.2.9:7000"


@dataclass
class FakeRay:
    """`serve` waits for what it is to answer."""

    answers: asyncio.Queue[Outcome | Exception] = field(default_factory=asyncio.Queue)
    calls: list[str] = field(default_factory=list)
    terminated: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, method: str, *_arguments: object) -> Any:
        self.calls.append(method)
        if method == "serve":
            answer = await self.answers.get()
            if isinstance(answer, Exception):
                raise answer
            return answer
        assert method == "terminate"
        self.terminated.set()
        return None


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "3600"])
    yield started
    started.kill()
    started.wait()


def worker(ray: FakeRay, pid: int, *, is_local: bool, is_detached: bool = True) -> WorkerProcess:
    options = ActorOptions("decode-0", "baton", is_detached)
    description = Description(pid, Launch("module:run", DecodeConfig()))
    return WorkerProcess(cast(RayKeeper, ray), options, description, is_local)


@pytest.mark.parametrize("is_detached", [True, False])
@pytest.mark.parametrize("error", [Unavailable("Ray knows it no more"), Lost()])
async def test_a_worker_that_ray_has_lost_lives_until_its_process_ends(
    process: subprocess.Popen[bytes], error: Exception, is_detached: bool
) -> None:
    ray = FakeRay()
    running = worker(ray, process.pid, is_local=True, is_detached=is_detached)
    ended = asyncio.create_task(running.ended())
    await ray.answers.put(error)
    await asyncio.wait({ended}, timeout=0.2)
    assert not ended.done()
    process.kill()
    why = await asyncio.wait_for(ended, 10)
    assert str(why) == "its process ended"


async def test_rays_reason_is_told(process: subprocess.Popen[bytes]) -> None:
    ray = FakeRay()
    running = worker(ray, process.pid, is_local=True)
    ended = asyncio.create_task(running.ended())
    await ray.answers.put(Unavailable("the memory monitor killed it"))
    process.kill()
    assert "memory monitor" in str(await asyncio.wait_for(ended, 10))


async def test_one_that_has_served_leaves_in_order(process: subprocess.Popen[bytes]) -> None:
    ray = FakeRay()
    running = worker(ray, process.pid, is_local=True)
    ended = asyncio.create_task(running.ended())
    await ray.answers.put(Outcome())
    await asyncio.wait_for(ray.terminated.wait(), 10)
    assert await running.lives(), "it answers nobody any more, and need not be killed for that"
    process.terminate()
    assert await asyncio.wait_for(ended, 10) is None


async def test_of_another_machine_its_own_word_counts_when_ray_has_lost_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive, asked = True, asyncio.Event()

    async def lives(address: str) -> bool:
        assert address == ADDRESS
        asked.set()
        return alive

    monkeypatch.setattr(probe, "lives", lives)
    monkeypatch.setattr("baton.cluster.worker_process._ASK_S", 0.01)
    ray = FakeRay()
    running = worker(ray, 1, is_local=False)
    running._address = ADDRESS
    ended = asyncio.create_task(running.ended())
    await ray.answers.put(Lost())  # and asked again
    await ray.answers.put(Unavailable("Ray knows it no more"))
    await asyncio.wait_for(asked.wait(), 10)
    assert not ended.done()
    alive = False
    assert isinstance(await asyncio.wait_for(ended, 10), Unavailable)
    assert ray.calls == ["serve", "serve"]
