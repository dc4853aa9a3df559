"""The pair chosen among a few candidates against the best of all pairs."""

from __future__ import annotations

import random
from math import inf

import pytest

from baton.prefill_cost import PrefillCost
from baton.types import BlockId, Fingerprint, PoolId, PoolLoad, Role, Weights, WorkerInfo
from router.routing.index import BlockIndex, Matches
from router.routing.policy import Choice, Demand, PolicySettings, choose
from router.routing.pools import Pools
from router.routing.shortlist import shortlist

BLOCK_SIZE = 64
WEIGHTS = Weights("m", "model")
KV_BYTES = 24_576
SETTINGS = PolicySettings()


def worker(name: str, role: Role) -> WorkerInfo:
    fingerprint = Fingerprint("model", BLOCK_SIZE, 1, "fp32", 12, 4, 64)
    return WorkerInfo(
        name, 1, role, "", "m", fingerprint, 1 << 20, 100, 1, 1000, "0", ("shm",), "h", 1
    )


class Cluster:
    """Many pools, of random load, rates and caches."""

    def __init__(self, rng: random.Random, num_prefill: int, num_decode: int) -> None:
        self.rng = rng
        self.pools, self.index = Pools(), BlockIndex()
        for role, count in ((Role.PREFILL, num_prefill), (Role.DECODE, num_decode)):
            for number in range(count):
                self.add(worker(f"{role.name}-{number}", role))
        self.prompts = [self.blocks(number) for number in range(8)]
        # A prefix that most share, some that few have, and one that only one has.
        holders = list(self.pools)
        for prompt in self.prompts:
            depth = 0
            for share in (0.7, rng.choice([0.01, 0.05, 0.3]), 0.02):
                depth = min(len(prompt), depth + rng.randrange(1, 120))
                holders = [pool for pool in holders if rng.random() < share] or holders[:1]
                for pool in holders:
                    self.index.store(pool.id, prompt[:depth])
            holders = list(self.pools)

    def add(self, info: WorkerInfo) -> None:
        self.pools.put(info)
        (pool,) = [pool for pool in self.pools if pool.id.worker_id == info.worker_id]
        rng = self.rng
        free = rng.randrange(1000)
        slowness = 2.0 if rng.random() < 0.1 else 1.0
        cost = PrefillCost(slowness * 4e-10, slowness * 1.5e-5, slowness * 0.015, 6000)
        pool.num_computed, pool.believed_until_s = 100, inf
        self.pools.report(
            PoolLoad(
                pool.id,
                1,
                0,
                0,
                0,
                1000,
                free,
                0,
                1000 - free,
                0,
                50_000.0,
                0.01,
                prefill_cost=cost,
            )
        )
        for _ in range(rng.choice([0, 0, 1, 3, 8])):
            num_tokens = rng.randrange(1, 30_000)
            pool.enqueue(num_tokens, cost.prompt_s(num_tokens), now_s=0.0)
        for _ in range(rng.randrange(20)):
            pool.begin()

    def blocks(self, number: int) -> list[BlockId]:
        return [BlockId(self.rng.randbytes(16)) for _ in range(256)]

    def choices(self) -> tuple[Choice, Choice]:
        """Among the candidates, and among all."""
        prompt = self.rng.choice(self.prompts)[: self.rng.randrange(2, 256)]
        hits = self.index.match(prompt, BLOCK_SIZE)
        demand = Demand(len(prompt) * BLOCK_SIZE + 1, hits, KV_BYTES)
        decode, prefill = shortlist(self.pools, WEIGHTS, hits, lambda pool: True)
        assert max(len(decode), len(prefill)) <= 20
        short = choose(demand, decode, prefill, SETTINGS)
        decode, prefill = (self.pools.serving(role, "m") for role in (Role.DECODE, Role.PREFILL))
        best = choose(demand, decode, prefill, SETTINGS)
        assert short is not None
        assert best is not None
        return short, best


def test_the_choice_among_candidates_is_the_best_of_all() -> None:
    rng = random.Random(5)
    num_states = num_equal = 0
    for _ in range(25):
        cluster = Cluster(rng, rng.choice([20, 60]), rng.choice([20, 60]))
        for _ in range(20):
            short, best = cluster.choices()
            ratio = short.way.cost_s / best.way.cost_s
            assert ratio <= 1.1
            num_equal += ratio <= 1.0 + 1e-9
            num_states += 1
    assert num_equal >= 0.99 * num_states


@pytest.mark.parametrize("num_pools", [3, 40])
def test_pools_that_take_nothing_are_not_candidates(num_pools: int) -> None:
    cluster = Cluster(random.Random(1), num_pools, 1)
    busy = {f"PREFILL-{number}" for number in range(num_pools - 1)}
    _, found = shortlist(
        cluster.pools,
        WEIGHTS,
        Matches([], {}, {}),
        lambda pool: pool.id.worker_id not in busy,
    )
    assert [pool.id for pool in found] == [PoolId(f"PREFILL-{num_pools - 1}")]
