"""Random lives on two prefill and two decode workers whose pools hold a few requests at a time: all end
properly, what was not given up is what one aggregated worker answers, and no block is left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from tests.cluster.lives import NARROW_GATE, NUM_BLOCKS, TINY_POOL, Kind, followed, live, make_kinds
from tests.cluster.watching import explained

# Some prompts go to prefill workers, some are computed where they are decoded.
MIXED = {**NARROW_GATE, "BATON_ROUTER_POLICY_INTERFERENCE": "100000"}
NUM_REQUESTS = 500  # per transport


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kinds(checkpoint: Path) -> AsyncIterator[list[Kind]]:
    with LocalCluster(str(checkpoint), worker_flags=TINY_POOL) as cluster:
        async with AsyncClient(cluster.address) as client:
            yield await make_kinds(client, num_kinds=80)


@pytest.mark.parametrize("transport", ["shm", "torch_dist"])
async def test_random_lives(transport: str, kinds: list[Kind], checkpoint: Path) -> None:
    with LocalCluster(
        str(checkpoint),
        num_workers=2,
        num_prefill_workers=2,
        worker_flags={**TINY_POOL, "transport": [transport]},
        environment={**MIXED, "BATON_ROUTER_NUM_LOGGED_REQUESTS": str(2 * NUM_REQUESTS)},
    ) as cluster:
        async with AsyncClient(cluster.address) as client, followed(client) as events:
            with explained(cluster):
                ends = await live(client, kinds, NUM_REQUESTS)
            requests = await client.requests(2 * NUM_REQUESTS)
        assert all(process.alive for process in cluster.processes()), cluster.logs()
    accounts = [each.timeline.hand_off for each in requests if each.timeline.hand_off]
    hand_offs = [
        each for each in accounts if each.transfer_bytes
    ]  # of others only the prompt was computed
    evicted = {worker_id: pool.num_evicted for worker_id, pool in events.items()}
    print(transport, dict(ends), f"{len(hand_offs)} hand-offs", evicted)
    assert len(requests) > 0.8 * NUM_REQUESTS  # the others were given up before they arrived
    assert ends["preempted"] > 0, "the pools were not small enough"
    assert {hand_off.prefill_worker for hand_off in hand_offs} == {"prefill-2", "prefill-3"}
    assert NUM_REQUESTS / 10 < len(hand_offs) < NUM_REQUESTS
    assert sum(evicted.values()) > 4 * NUM_BLOCKS
