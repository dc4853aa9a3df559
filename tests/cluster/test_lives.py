"""A thousand random requests, a third of them given up in one way or another, on a pool that holds a few
at a time: all end properly, what was not given up is exact, and in the end every block is back."""

from __future__ import annotations

from pathlib import Path

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from tests.cluster.lives import NARROW_GATE, NUM_BLOCKS, TINY_POOL, followed, live, make_kinds


async def test_a_thousand_random_lives(checkpoint: Path) -> None:
    with LocalCluster(str(checkpoint), worker_flags=TINY_POOL, environment=NARROW_GATE) as cluster:
        async with AsyncClient(cluster.address) as client, followed(client) as events:
            kinds = await make_kinds(client, num_kinds=100)
            ends = await live(client, kinds, num_requests=1000)
        assert all(process.alive for process in cluster.processes()), cluster.logs()
    [pool] = events.values()
    print(dict(ends), pool.num_evicted)
    assert ends["preempted"] > 0, "the pool was not small enough"
    assert pool.num_evicted > NUM_BLOCKS
