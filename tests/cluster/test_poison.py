"""A request that kills the process which computes it: two are lost, no third, and nobody else's request."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.errors import Suspected
from baton.types import PoolLoad
from tests.cluster.load import Ask, make_asks
from tests.cluster.poison import POISON, poisoned_workers
from tests.cluster.watching import eventually, explained, integrity

WORKERS = {"deterministic": True, "num_blocks": 80}


async def ask(client: AsyncClient, ask: Ask, under_way: asyncio.Semaphore) -> None:
    """Gets what it got undisturbed; says after two deltas that it is under way."""
    token_ids: list[int] = []
    async with client.stream(ask.prompt, **ask.options) as stream:
        async for delta in stream:
            token_ids += delta.token_ids
            under_way.release()
    assert token_ids == ask.token_ids


@pytest.mark.parametrize(("num_prefill", "dying"), [(0, "worker"), (2, "prefill")])
async def test_poison_ends_two_workers_and_no_innocent_request(
    checkpoint: Path, num_prefill: int, dying: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if num_prefill:  # tiny models prefill faster than a hand-off takes
        monkeypatch.setenv("BATON_ROUTER_POLICY_INTERFERENCE", "1000000")
    with (
        poisoned_workers(),
        LocalCluster(
            str(checkpoint),
            num_workers=1 if num_prefill else 3,
            num_prefill_workers=num_prefill,
            worker_flags=WORKERS,
        ) as cluster,
        explained(cluster),
    ):
        async with AsyncClient(cluster.address) as client:
            asks = await make_asks(client, num_asks=8, num_new=80)
            under_way = asyncio.Semaphore(0)
            async with asyncio.TaskGroup() as innocents:
                for each in asks[:5]:
                    innocents.create_task(ask(client, each, under_way))
                for _ in range(10):
                    await under_way.acquire()
                poison = client.generate([*range(50), *POISON], max_tokens=4, ignore_eos=True)
                poisoning = asyncio.create_task(poison)
                for each in asks[5:]:
                    innocents.create_task(ask(client, each, under_way))
                with pytest.raises(Suspected, match="2 workers died"):
                    await poisoning
            dead = [worker.name for worker in cluster.workers if not worker.alive]
            assert len(dead) == 2
            assert all(name.startswith(dying) for name in dead)
            for member in await client.workers():
                if member.info.worker_id not in dead:
                    await eventually(partial(integrity, member.info.address), holds_nothing)


def holds_nothing(pool: PoolLoad) -> bool:
    return pool.num_held_blocks + pool.num_quarantined_blocks == 0
