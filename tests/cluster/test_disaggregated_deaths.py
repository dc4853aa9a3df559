"""kill -9 of prefill workers, decode workers and routers under load: every request completes, to the bit
what it would have been, and what was lost is waited for in bounded time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest_asyncio

from baton import AsyncClient
from cluster.local import LocalCluster
from cluster.process import Process
from tests.cluster.load import Ask, Load, make_asks, show_recovery
from tests.cluster.watching import eventually, explained, num_registered, settled

NUM_DEATHS = 10
WORKERS = {"deterministic": True, "num_blocks": 80}
NAMES = {"prefill": "prefill-", "decode": "worker-"}
ALWAYS_REMOTE = {"BATON_ROUTER_POLICY_INTERFERENCE": "1000"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asks(checkpoint: Path) -> AsyncIterator[list[Ask]]:
    with LocalCluster(str(checkpoint), worker_flags=WORKERS) as cluster:
        async with AsyncClient(cluster.address) as client:
            yield await make_asks(client, num_asks=24, num_new=80)


async def back(client: AsyncClient, process: Process) -> None:
    """Until the process is registered."""
    await eventually(
        client.workers, lambda workers: process.popen.pid in [w.info.pid for w in workers]
    )


async def test_workers_die(asks: list[Ask], checkpoint: Path) -> None:
    """One of either role, shortly after each other; both are started again, and then the others die."""
    deaths_s: dict[str, list[float]] = {"prefill": [], "decode": []}
    back_s: list[float] = []
    with (
        LocalCluster(
            str(checkpoint),
            num_workers=2,
            num_prefill_workers=2,
            worker_flags=WORKERS,
            environment=ALWAYS_REMOTE,
        ) as cluster,
        explained(cluster),
    ):
        async with (
            AsyncClient(cluster.address) as client,
            Load(client, asks).running() as load,
        ):
            for _ in range(NUM_DEATHS):
                fallen: list[Process] = []
                for role, prefix in NAMES.items():
                    await load.progress(num_deltas=20)
                    victim = next(each for each in cluster.workers if each.name.startswith(prefix))
                    deaths_s[role].append(time.monotonic())
                    victim.popen.kill()
                    victim.popen.wait()
                    cluster.workers.remove(victim)
                    fallen.append(cluster.add_worker(role=role, worker_id=victim.name))
                started_s = time.monotonic()
                for process in fallen:
                    await back(client, process)
                back_s.append(time.monotonic() - started_s)
        await settled(cluster.address)
    for role, at_s in deaths_s.items():
        show_recovery(f"{role} worker", load.recovery_s(at_s), back_s)
    timelines = [followed.timeline for followed in load.followed if followed.timeline]
    assert len(timelines) == len(load.followed)
    assert any(timeline.num_attempts > 1 for timeline in timelines)
    assert sum(bool(timeline.prefill_worker) for timeline in timelines) > len(timelines) / 2


async def test_routers_die(asks: list[Ask], checkpoint: Path) -> None:
    """One of two, in turns; the client has both addresses."""
    deaths_s: list[float] = []
    with (
        LocalCluster(
            str(checkpoint),
            num_prefill_workers=1,
            num_routers=2,
            worker_flags=WORKERS,
            environment=ALWAYS_REMOTE,
        ) as cluster,
        explained(cluster),
    ):
        async with (
            AsyncClient(cluster.addresses) as client,
            Load(client, asks).running() as load,
        ):
            for number in range(NUM_DEATHS):
                victim = number % 2
                await load.progress(num_deltas=50)
                deaths_s.append(time.monotonic())
                cluster.routers[victim].popen.kill()
                cluster.routers[victim].popen.wait()
                await load.progress(num_deltas=50)
                cluster.start_router(victim)
                async with AsyncClient(cluster.addresses[victim]) as own:
                    await eventually(partial(num_registered, own), lambda count: count == 2)
        for address in cluster.addresses:
            await settled(address)
    show_recovery("router", load.recovery_s(deaths_s))
    assert sum(followed.num_continuations for followed in load.followed) >= NUM_DEATHS / 2
