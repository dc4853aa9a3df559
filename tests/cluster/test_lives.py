"""A thousand random requests, a third of them given up in one way or another, on a pool that holds a few
at a time: all end properly, what was not given up is exact, and in the end every block is back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

from baton import AsyncClient
from cluster.local import LocalCluster
from tests.cluster.lives import X
from tests.cluster.watching import eventually, settled

NUM_REQUESTS = 1000


async def test_a_thousand_random_lives(checkpoint: Path) -> None:
    rng = random.Random(20)
    shared = [rng.randrange(256) for _ in range(MAX_PROMPT)]
    kinds = [Kind.make(rng, shared) for _ in range(NUM_KINDS)]
    fates = rng.choices(list(FATES), list(FATES.values()), k=NUM_REQUESTS)
    ends: Counter[str] = Counter()
    open_requests = asyncio.Semaphore(MAX_OPEN)

    async def live(client: AsyncClient, number: int) -> None:
        own = random.Random(number)
        async with open_requests:
            ends[await fates[number](client, own.choice(kinds), own)] += 1

    worker_flags = {
        "deterministic": True,
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
        "max_model_len": MAX_MODEL_LEN,
        "max_chunk_tokens": 64,
    }
    environment = {"BATON_ROUTER_MAX_IN_FLIGHT_PER_POOL": str(MAX_IN_FLIGHT)}
    with LocalCluster(
        str(checkpoint), worker_flags=worker_flags, environment=environment
    ) as cluster:
        async with AsyncClient(cluster.address) as client, followed(client) as events:
            for kind in kinds:
                await run_alone(client, kind)
            await asyncio.gather(*(live(client, number) for number in range(NUM_REQUESTS)))
            [pool] = await settled(cluster.address)
            await eventually(
                lambda: asyncio.sleep(0, len(events.published)),
                lambda num_published: num_published == pool.num_cached_blocks,
            )
        assert all(process.alive for process in cluster.processes()), cluster.logs()
    print(dict(ends), events.num_evicted)
    assert ends.total() == NUM_REQUESTS
    assert ends["preempted"] > 0, "the pool was not small enough"
    assert events.num_evicted > NUM_BLOCKS
    for end in ("completed", "closed", "cancelled", "expired", "disconnected", "continued"):
        assert ends[end] > 0, end
