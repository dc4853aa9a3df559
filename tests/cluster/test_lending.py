"""A conversation that moves to a prefill worker: it takes the prefix from the decode worker that has it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from baton import Client
from baton.client.results import Generation
from baton.cluster.local import LocalCluster
from tests.cluster.watching import settled

BLOCK_SIZE = 16
FLAGS: dict[str, Any] = {
    "deterministic": True,
    "block_size": BLOCK_SIZE,
    "num_blocks": 200,
    "max_chunk_tokens": 160,
}
# Tiny models prefill faster than a hand-off takes: only these prices send prompts and prefixes away.
PRICES = {"BATON_ROUTER_POLICY_INTERFERENCE": "1000000", "BATON_ROUTER_POLICY_HAND_OFF_S": "0"}


def first_turn() -> list[int]:
    rng = random.Random(5)
    return [rng.randrange(256) for _ in range(600)]


def ask(client: Client, tokens: list[int], **options: Any) -> Generation:
    return client.generate(tokens, temperature=0.0, max_tokens=40, ignore_eos=True, **options)


def second_turn(tokens: list[int], answer: Generation) -> list[int]:
    rng = random.Random(6)
    return [*tokens, *answer.token_ids, *(rng.randrange(256) for _ in range(150))]


@pytest.mark.parametrize("transport", ["shm", "torch_dist"])
def test_a_prefix_is_taken_from_the_decode_worker(transport: str, checkpoint: Path) -> None:
    flags = {**FLAGS, "transport": [transport]}
    with (
        LocalCluster(str(checkpoint), worker_flags=FLAGS) as cluster,
        Client(cluster.address) as client,
    ):
        tokens = first_turn()
        expected_first = ask(client, tokens)
        expected = ask(client, second_turn(tokens, expected_first))
    with (
        LocalCluster(str(checkpoint), worker_flags=flags, environment=PRICES) as cluster,
        Client(cluster.address) as client,
    ):
        first = ask(client, tokens)
        assert first.samples == expected_first.samples
        # Its samples part and end at once: no copy of their last block is left for what comes next.
        client.generate(tokens[100:120], n=2, max_tokens=1, ignore_eos=True)
        cluster.add_worker(role="prefill", worker_id="prefill-1")
        cluster.wait_ready()
        second = ask(client, second_turn(tokens, first))
        hand_off = second.timeline.hand_off
        assert hand_off is not None
        assert hand_off.transport == transport
        num_lent, rest = divmod(hand_off.num_lent_tokens, BLOCK_SIZE)
        assert rest == 0
        assert num_lent == second.usage.num_cached_tokens // BLOCK_SIZE == (600 + 39) // BLOCK_SIZE
        assert second.samples == expected.samples
        # The prefill worker has it from now on: nothing is lent again.
        again = ask(client, [*second_turn(tokens, first)[:700], 3, 1, 4, *range(100)])
        assert again.timeline.hand_off is not None
        assert again.timeline.hand_off.num_lent_tokens == 0
        # To another tenant neither worker has anything of it.
        other, twice = (ask(client, tokens, tenant="other") for _ in range(2))
        assert other.samples == twice.samples == first.samples
        assert other.timeline.hand_off is not None
        assert other.usage.num_cached_tokens == 0
        assert other.timeline.hand_off.num_prefill_cached_tokens == 0
        assert twice.usage.num_cached_tokens > 0
        asyncio.run(settled(cluster.address))
        assert all(process.alive for process in cluster.processes()), cluster.logs()
