"""What a routing decision costs in a large cluster, and what the index takes: the router's own pieces, timed.

Half of the pools prefill, half decode. Every block of the index is held by one pool. A third of the pools
have a system prompt in common, and every prompt goes on with as much as some pool has of it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.bench.router_tokenizer import trained_on_prose
from baton.bench.statistics import percentile
from baton.block_id import chain, salt
from baton.prefill_cost import PrefillCost
from baton.types import BlockId, Fingerprint, PoolId, PoolLoad, Role, Weights, WorkerInfo
from router.routing.chooser import Chooser, PromptBlocks
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pool, Pools

_WEIGHTS = Weights("model", "weights")
_BATCH = 10_000  # blocks stored at a time, as a snapshot has them
_NUM_SHARED_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class DecisionSettings:
    num_pools: int = 1000
    num_blocks: int = 10_000_000
    num_prompt_tokens: int = 16_384
    block_size: int = 64
    num_decisions: int = 3000
    seed: int = 0


def measure(settings: DecisionSettings) -> dict[str, Any]:
    """`decision_us`: matching the index, judging candidates, choosing. `tokenize_us`: the prompt's text.
    `hashing_us`: the ids of its blocks, from its tokens. `index_bytes_per_entry`: by the process' memory."""
    world = _World(settings)
    before = _resident_bytes()
    started_s = time.perf_counter()
    world.fill()
    fill_s = time.perf_counter() - started_s
    num_bytes = _resident_bytes() - before
    decisions_us = [1e6 * world.decide() for _ in range(settings.num_decisions)]
    return {
        "decision_us": {f"p{p}": percentile(decisions_us, p) for p in (50, 99)},
        "tokenize_us": 1e6 * _tokenize_s(settings),
        "hashing_us": 1e6 * _hashing_s(settings),
        "index_bytes_per_entry": num_bytes / settings.num_blocks,
        "index_stores_per_s": settings.num_blocks / fill_s,
    }


class _World:
    def __init__(self, settings: DecisionSettings) -> None:
        self._settings = settings
        self._rng = random.Random(settings.seed)
        self._chooser = Chooser(Pools(), BlockIndex(1 << 40), PolicySettings())
        self._shared = self._blocks(_NUM_SHARED_BLOCKS)
        self._stems: list[Sequence[BlockId]] = []  # the beginnings of what pools hold
        for number in range(settings.num_pools):
            self._add(_worker(number, settings))

    def fill(self) -> None:
        """Gives every pool its share of the blocks, prompt after prompt."""
        settings, index = self._settings, self._chooser.index
        per_prompt = settings.num_prompt_tokens // settings.block_size
        pools = list(self._chooser.pools)
        for pool in pools:
            if self._rng.random() < 1 / 3:
                index.store(pool.id, self._shared)
        num_left = settings.num_blocks
        while num_left > 0:
            pool, block_ids = self._rng.choice(pools), self._blocks(min(num_left, _BATCH))
            index.store(pool.id, block_ids)
            num_left -= len(block_ids)
            rest = self._blocks(per_prompt)
            self._stems.append([*self._shared, *block_ids[:per_prompt], *rest][:per_prompt])

    def decide(self) -> float:
        """Seconds that one decision took; then it counts, and something else ends."""
        settings, rng = self._settings, self._rng
        stem = rng.choice(self._stems)
        depth = rng.randrange(len(stem))
        block_ids = [*stem[:depth], *self._blocks(len(stem) - depth)]
        prompt = PromptBlocks(
            _WEIGHTS, settings.num_prompt_tokens + 1, block_ids, settings.block_size, 24_576.0
        )
        now_s = time.perf_counter()
        choice = self._chooser.choose(prompt, _takes, now_s)
        took_s = time.perf_counter() - now_s
        assert choice is not None
        commitment = self._chooser.commit(choice, prompt, now_s)
        if rng.random() < 0.9:
            commitment.end(time.perf_counter())
        return took_s

    def _add(self, worker: WorkerInfo) -> None:
        pools, rng = self._chooser.pools, self._rng
        pools.put(worker)
        total = worker.num_total_blocks
        free = rng.randrange(total)
        cost = PrefillCost(4.2e-10, rng.uniform(1.4e-5, 1.6e-5), 0.0165, 6144)
        pools.report(
            PoolLoad(
                pool=PoolId(worker.worker_id),
                incarnation=1,
                num_running_requests=0,
                num_waiting_requests=0,
                num_waiting_tokens=0,
                num_total_blocks=total,
                num_free_blocks=free,
                num_held_blocks=0,
                num_cached_blocks=total - free,
                num_quarantined_blocks=0,
                prefill_tokens_per_s=50_000.0,
                decode_step_s=rng.uniform(0.006, 0.02),
                prefill_cost=cost,
            )
        )
        pool = pools.get(PoolId(worker.worker_id))
        assert pool is not None
        for _ in range(rng.randrange(4)):
            num_tokens = rng.randrange(1, 20_000)
            pool.enqueue(num_tokens, cost.prompt_s(num_tokens), time.perf_counter())
        for _ in range(rng.randrange(16)):
            pool.begin()

    def _blocks(self, num_blocks: int) -> list[BlockId]:
        raw = self._rng.randbytes(16 * num_blocks)
        return [BlockId(raw[start : start + 16]) for start in range(0, len(raw), 16)]


def _takes(pool: Pool) -> bool:
    return not pool.draining


def _tokenize_s(settings: DecisionSettings) -> float:
    tokenizer, text = trained_on_prose(settings.num_prompt_tokens)
    times = []
    for _ in range(10):
        started_s = time.perf_counter()
        tokenizer.encode_batch_fast([text])  # as the router does
        times.append(time.perf_counter() - started_s)
    return percentile(times, 50)


def _hashing_s(settings: DecisionSettings) -> float:
    tokens, key = list(range(settings.num_prompt_tokens)), salt("model")
    times = []
    for _ in range(20):
        started_s = time.perf_counter()
        list(chain(tokens, settings.block_size, key))
        times.append(time.perf_counter() - started_s)
    return percentile(times, 50)


def _worker(number: int, settings: DecisionSettings) -> WorkerInfo:
    return WorkerInfo(
        worker_id=f"worker-{number}",
        incarnation=1,
        role=Role.PREFILL if number % 2 else Role.DECODE,
        address="",
        model=_WEIGHTS.model,
        fingerprint=Fingerprint(_WEIGHTS.identity, settings.block_size, 1, "fp16", 32, 8, 128),
        max_model_len=1 << 20,
        vocab_size=32_000,
        num_dp_ranks=1,
        num_total_blocks=max(1, settings.num_blocks // settings.num_pools),
        package_version="",
        transports=("shm",),
        host_id="",
        pid=0,
    )


def _resident_bytes() -> int:
    """Of this process."""
    num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return num_pages * os.sysconf("SC_PAGE_SIZE")
