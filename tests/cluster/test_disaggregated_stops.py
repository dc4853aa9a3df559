"""A prefill worker that is stopped in the middle of writing, for longer than every timeout, and then goes on:
meanwhile its requests are served otherwise and the decode worker's pool is used again, and what it writes
late lands in blocks that nobody uses."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from baton import AsyncClient
from baton.client.results import Generation
from baton.cluster.local import LocalCluster
from baton.cluster.process import Process, free_port
from baton.types import PoolLoad
from router.routing.policy import PolicySettings
from tests.cluster.own_router import router_in_this_process
from tests.cluster.watching import eventually, explained, integrity, num_registered, settled

NUM_PROMPT_BLOCKS, BLOCK_SIZE = 32, 64
MOST_TRIES = 30
ROWS_OF_ONE_PRICE = 8  # the deterministic engine computes sixteen rows for every one
PAST_EVERY_TIMEOUT_S = 9.0  # progress, fence, the lease, and gRPC's keepalive (7 s)
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


@dataclass
class Stage:
    """One prefill and one decode worker. `away` computes every prompt on the prefill worker, `here` every
    prompt on the decode worker, with no word to the other."""

    cluster: LocalCluster
    away: AsyncClient
    here: AsyncClient
    decode_address: str

    @property
    def prefill_worker(self) -> Process:
        return next(each for each in self.cluster.workers if each.name.startswith("prefill"))

    async def pool(self) -> PoolLoad:
        """The decode worker's, of which every block is accounted for."""
        return await integrity(self.decode_address)

    async def is_receiving(self) -> None:
        await eventually(self.pool, lambda pool: pool.num_held_blocks >= NUM_PROMPT_BLOCKS)


@asynccontextmanager
async def staged(checkpoint: Path, transport: str) -> AsyncIterator[Stage]:
    ports = free_port(), free_port()
    cluster = LocalCluster(
        str(checkpoint),
        num_prefill_workers=1,
        worker_flags={
            "deterministic": True,
            "num_blocks": 100,
            "max_chunk_tokens": 64,
            "transport": [transport],
            "router": [f"127.0.0.1:{port}" for port in ports],
        },
        grpc_port=ports[0],
        environment={
            "BATON_ROUTER_POLICY_INTERFERENCE": "1000000",
            "BATON_ROUTER_PAIR_RETRY_S": "0.001",  # it is stopped many times
            "BATON_DECODE_HOST_TIMES_PROGRESS_TIMEOUT_S": "0.5",
            "BATON_DECODE_HOST_TIMES_FENCE_TIMEOUT_S": "0.5",
        },
    )
    with cluster, explained(cluster):
        async with (
            router_in_this_process(checkpoint, ports[1], PolicySettings(hand_off_s=1e6)),
            AsyncClient(cluster.address) as away,
            AsyncClient(f"127.0.0.1:{ports[1]}") as here,
        ):
            await eventually(lambda: num_registered(here), lambda count: count == 2)
            workers = await away.workers()
            [address] = [w.info.address for w in workers if w.info.worker_id == "worker-0"]
            yield Stage(cluster, away, here, address)


class Prompts:
    """Random prompts, never the same twice, so that no cache helps."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def of(self, num_tokens: int) -> list[int]:
        return [self._rng.randrange(256) for _ in range(num_tokens)]


async def computed_here(stage: Stage, prompts: list[list[int]], num_new: int) -> list[Generation]:
    """All at once, on the decode worker; many take every block of its pool that may be taken."""
    calls = (stage.here.generate(prompt, max_tokens=num_new, **GREEDY) for prompt in prompts)
    return list(await asyncio.gather(*calls))


async def stop_in_a_transfer(
    stage: Stage, prompts: Prompts, rng: random.Random, *, revocable: bool
) -> tuple[list[int], Generation, int]:
    """Stops the prefill worker while it writes; returns the prompt it was writing for, the answer that was
    given without it, and how many blocks are quarantined: those that had not arrived, or none where the
    transport takes the permission to write back."""
    for _ in range(MOST_TRIES):
        prompt = prompts.of(NUM_PROMPT_BLOCKS * BLOCK_SIZE)
        request = asyncio.create_task(stage.away.generate(prompt, max_tokens=20, **GREEDY))
        await stage.is_receiving()
        await asyncio.sleep(rng.uniform(0.0, 0.1))
        stage.prefill_worker.popen.send_signal(signal.SIGSTOP)
        answer = await request
        num_quarantined = (await stage.pool()).num_quarantined_blocks
        if not answer.timeline.prefill_worker:  # the transfer was not complete
            if revocable:
                assert num_quarantined == 0
                return prompt, answer, 0
            if NUM_PROMPT_BLOCKS / 8 < num_quarantined < NUM_PROMPT_BLOCKS:
                return prompt, answer, num_quarantined
        await go_on(stage)
    raise AssertionError(f"never in the middle of a transfer, {MOST_TRIES} times")


def is_full(pool: PoolLoad) -> bool:
    return pool.num_free_blocks + pool.num_cached_blocks < pool.num_total_blocks / 10


async def go_on(stage: Stage) -> None:
    """SIGCONT; until every block is proved to be nobody's any more and the worker is one of us again."""
    stage.prefill_worker.popen.send_signal(signal.SIGCONT)
    await eventually(stage.pool, lambda pool: pool.num_quarantined_blocks == 0)
    await eventually(lambda: num_registered(stage.away), lambda count: count == 2)


@pytest.mark.parametrize(("transport", "num_stops"), [("shm", 3), ("torch_dist", 1)])
async def test_what_a_stopped_writer_writes_late_harms_nobody(
    transport: str, num_stops: int, checkpoint: Path
) -> None:
    rng, prompts = random.Random(1), Prompts(2)
    revocable = transport == "torch_dist"
    answered: list[tuple[list[int], Generation]] = []
    async with staged(checkpoint, transport) as stage:
        for number in range(num_stops):
            prompt, answer, num_quarantined = await stop_in_a_transfer(
                stage, prompts, rng, revocable=revocable
            )
            stopped_s = time.monotonic()
            answered.append((prompt, answer))

            others = [prompts.of(600) for _ in range(8)]
            answered += zip(others, await computed_here(stage, others, num_new=60), strict=True)
            if number == num_stops - 1:
                await asyncio.sleep(stopped_s + PAST_EVERY_TIMEOUT_S - time.monotonic())
            assert (await stage.pool()).num_quarantined_blocks == num_quarantined

            # These hold nearly all other blocks, and decode, when the writer wakes up.
            others = [prompts.of(450) for _ in range(14)]
            reusing = asyncio.create_task(computed_here(stage, others, num_new=120))
            await eventually(stage.pool, is_full)
            await go_on(stage)
            answered += zip(others, await reusing, strict=True)
            print(f"{transport}: {num_quarantined} of {NUM_PROMPT_BLOCKS} blocks were quarantined")
        await settled(stage.cluster.address)

        again = await stage.away.generate(prompts.of(500), max_tokens=20, **GREEDY)
        assert again.timeline.prefill_worker, "the worker serves again"
        for first in range(0, len(answered), ROWS_OF_ONE_PRICE):
            prompts_again = [prompt for prompt, _ in answered[first : first + ROWS_OF_ONE_PRICE]]
            afresh = await computed_here(stage, prompts_again, num_new=120)
            for (_, generation), undisturbed in zip(answered[first:], afresh, strict=False):
                assert generation.token_ids
                num_new = len(generation.token_ids)
                assert generation.token_ids == undisturbed.token_ids[:num_new]
