"""A router's index against the workers' caches, block by block, and what routing makes of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.cluster.process import free_port
from baton.types import BlockId, PoolId
from router.process import Router
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from tests.cluster.lives import (
    NUM_BLOCKS,
    TINY_POOL,
    cached_by,
    followed,
    live,
    make_kinds,
)
from tests.cluster.own_router import router_in_this_process
from tests.cluster.watching import eventually, explained, num_registered, settled

BLOCK_SIZE = TINY_POOL["block_size"]
BLOCK_BYTES = 2 * 3 * 2 * 16 * 4 * BLOCK_SIZE  # K and V, layers, KV heads, head_dim, fp32


@asynccontextmanager
async def routed(
    checkpoint: Path, interference: float, **worker_flags: Any
) -> AsyncIterator[tuple[LocalCluster, Router, AsyncClient]]:
    """Two prefill and two decode workers that a router in this process leads."""
    port, others_port = free_port(), free_port()
    policy = PolicySettings(interference=interference)
    address = f"127.0.0.1:{port}"
    cluster = LocalCluster(
        str(checkpoint),
        num_workers=2,
        num_prefill_workers=2,
        worker_flags={**TINY_POOL, **worker_flags, "router": [address, f"127.0.0.1:{others_port}"]},
        grpc_port=others_port,
    )
    with cluster, explained(cluster):
        async with (
            router_in_this_process(checkpoint, port, policy) as router,
            AsyncClient(address) as client,
        ):
            await eventually(lambda: num_registered(client), lambda count: count == 4)
            yield cluster, router, client


async def test_the_index_is_what_the_workers_have_cached(checkpoint: Path) -> None:
    async with routed(checkpoint, interference=1e5) as (cluster, router, client):
        index = router._fleet.index
        async with followed(client) as events:
            kinds = await make_kinds(client, num_kinds=40)
            await live(client, kinds, num_requests=200)
            workers = {worker.info.worker_id: worker.info for worker in await client.workers()}
        for worker_id, info in workers.items():
            cached = await cached_by(info)
            assert cached == events[worker_id].published != set()
            await known_as(index, worker_id, cached)
        assert sum(pool.num_evicted for pool in events.values()) > 2 * NUM_BLOCKS
        assert len(index) == len(set().union(*(pool.published for pool in events.values())))

        victim = cluster.workers[0]
        victim.popen.kill()
        victim.popen.wait()
        await known_as(index, victim.name, set())
        for worker_id in workers.keys() - {victim.name}:
            assert index.blocks_of(PoolId(worker_id)) == events[worker_id].published


async def known_as(index: BlockIndex, worker_id: str, blocks: set[BlockId]) -> None:
    """Waits for what the worker is just telling."""

    async def known() -> set[BlockId]:
        return index.blocks_of(PoolId(worker_id))

    await eventually(known, lambda seen: seen == blocks)


async def test_a_conversation_returns_to_its_worker_and_moves_only_what_is_new(
    checkpoint: Path,
) -> None:
    """Several conversations in turns, every prompt computed on a prefill worker."""
    rng = random.Random(3)
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True}
    async with routed(checkpoint, interference=1e6, num_blocks=200, max_model_len=1000) as (
        _,
        _,
        client,
    ):
        conversations = [[rng.randrange(256) for _ in range(300)] for _ in range(4)]
        homes: list[str] = []
        for turn in range(4):
            for number, tokens in enumerate(conversations):
                answer = await client.generate(tokens, **options)
                timeline = answer.timeline
                assert timeline.hand_off is not None
                num_blocks = -(-len(tokens) // BLOCK_SIZE)
                num_cached_blocks, partial = divmod(answer.usage.num_cached_tokens, BLOCK_SIZE)
                num_moved, rest = divmod(timeline.hand_off.transfer_bytes, BLOCK_BYTES)
                assert partial == rest == 0
                assert num_moved == num_blocks - num_cached_blocks
                if turn == 0:
                    homes.append(timeline.decode_worker)
                else:
                    assert timeline.decode_worker == homes[number]
                    # 40 tokens of answer and 25 of question were added; the answer's last token and a
                    # partial block were not cached.
                    assert num_cached_blocks == (len(tokens) - 25 - 1) // BLOCK_SIZE
                    assert num_moved <= 3
                tokens += [*answer.token_ids, *(rng.randrange(256) for _ in range(25))]
            # The router's index learns of it by events, which come after the answer.
            await settled(client._replicas.addresses[0])
        assert len(set(homes)) == 2, "both decode workers have conversations"
