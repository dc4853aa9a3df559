"""kill -9 of prefill workers, decode workers and routers under load: every request completes, to the bit
what it would have been, and what was lost is waited for in bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.cluster.ray_cluster import RayCluster
from baton.cluster.reconcile import Limits
from baton.cluster.spec import Settings, read
from tests.cluster.load import Ask, Load, check_recovery, make_asks
from tests.cluster.watching import eventually, settled

WORKERS = {"deterministic": True, "num_blocks": 80}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asks(checkpoint: Path) -> AsyncIterator[list[Ask]]:
    with LocalCluster(str(checkpoint), worker_flags=WORKERS) as cluster:
        async with AsyncClient(cluster.address) as client:
            yield await make_asks(client, num_asks=24, num_new=80)


@pytest.fixture
def num_deaths(request: pytest.FixtureRequest) -> int:
    number: int = request.config.getoption("--deaths")
    return number


def started(checkpoint: Path, **counts: int) -> RayCluster:
    """A cluster under its controller, which brings back what dies."""
    settings = Settings(
        workers={"model": str(checkpoint), **WORKERS}, router={"grpc_port": 0, "http_port": 0}
    )
    # The pauses before restarts would grow: nothing here is up for long before it dies again.
    return RayCluster(read(settings, **counts), limits=Limits(max_backoff_s=0.25))


@pytest.fixture(autouse=True)
def always_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models prefill faster than a hand-off takes: only this price sends prompts away."""
    monkeypatch.setenv("BATON_ROUTER_POLICY_INTERFERENCE", "1000000")


async def killed(cluster: RayCluster, name: str) -> float:
    """When it was killed; the process is another one from now on."""
    pid = cluster.pids[name]
    at_s = time.monotonic()
    cluster.kill_worker(name)
    await eventually(
        lambda: asyncio.sleep(0, cluster.pids.get(name)), lambda current: current != pid
    )
    return at_s


async def test_workers_die(asks: list[Ask], checkpoint: Path, num_deaths: int) -> None:
    """One of either role, shortly after each other; both are brought back, and then the others die."""
    deaths_s: dict[str, list[float]] = {"prefill": [], "decode": []}
    back_s: list[float] = []
    with started(checkpoint, num_prefill_workers=2, num_decode_workers=2) as cluster:
        async with (
            AsyncClient(cluster.address) as client,
            Load(client, asks).running() as load,
        ):
            for number in range(num_deaths):
                for role, at_s in deaths_s.items():
                    await load.progress(num_deltas=20)
                    at_s.append(await killed(cluster, f"{role}-{number % 2}"))
                started_s = time.monotonic()
                await asyncio.to_thread(cluster.wait_ready)
                back_s.append(time.monotonic() - started_s)
        await settled(cluster.address)
    for role, at_s in deaths_s.items():
        check_recovery(f"{role} worker", load.recovery_s(at_s), back_s)
    timelines = [followed.timeline for followed in load.followed if followed.timeline]
    assert len(timelines) == len(load.followed)
    assert any(timeline.num_attempts > 1 for timeline in timelines)
    assert sum(bool(timeline.prefill_worker) for timeline in timelines) > len(timelines) / 2


async def test_routers_die(asks: list[Ask], checkpoint: Path, num_deaths: int) -> None:
    """One of two, in turns; the client has both addresses."""
    deaths_s: list[float] = []
    back_s: list[float] = []
    with started(checkpoint, num_routers=2, num_decode_workers=1) as cluster:
        async with (
            AsyncClient(cluster.addresses) as client,
            Load(client, asks).running() as load,
        ):
            for number in range(num_deaths):
                await load.progress(num_deltas=50)
                deaths_s.append(await killed(cluster, f"router-{number % 2}"))
                await load.progress(num_deltas=50)
                await asyncio.to_thread(cluster.wait_ready)
                back_s.append(time.monotonic() - deaths_s[-1])
        for address in cluster.addresses:
            await settled(address)
    check_recovery("router", load.recovery_s(deaths_s), back_s)
    assert sum(followed.num_continuations for followed in load.followed) >= num_deaths / 2
