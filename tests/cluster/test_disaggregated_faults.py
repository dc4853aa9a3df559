"""KV that goes wrong between two pools is found by its checksum, sent again, and counted; and a test that
would pass without looking at checksums is none, so the same is tried with verification off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from baton import AsyncClient
from baton.client.results import Generation
from baton.cluster.local import LocalCluster
from baton.errors import Internal
from tests.cluster.load import Ask, make_asks
from tests.cluster.watching import explained, settled

WORKERS = {"deterministic": True, "num_blocks": 80}
ALWAYS_REMOTE = {"BATON_ROUTER_POLICY_INTERFERENCE": "1000000"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asks(checkpoint: Path) -> AsyncIterator[list[Ask]]:
    with LocalCluster(str(checkpoint), worker_flags=WORKERS) as cluster:
        async with AsyncClient(cluster.address) as client:
            yield await make_asks(client, num_asks=24, num_new=20)


async def answer(
    checkpoint: Path, asks: list[Ask], transport: str, environment: dict[str, str]
) -> tuple[list[Generation | BaseException], str]:
    """What a cluster with faults answers, and its router's metrics."""
    with (
        LocalCluster(
            str(checkpoint),
            num_prefill_workers=1,
            worker_flags={**WORKERS, "transport": [transport]},
            environment={**ALWAYS_REMOTE, **environment},
        ) as cluster,
        explained(cluster),
    ):
        async with AsyncClient(cluster.address) as client:
            answers = await asyncio.gather(
                *(client.generate(ask.prompt, **ask.options) for ask in asks),
                return_exceptions=True,
            )
        await settled(cluster.address)
        async with httpx.AsyncClient() as http:
            metrics = await http.get(f"http://127.0.0.1:{cluster.http_port}/metrics")
    return list(answers), metrics.text


def are_exact(answers: list[Generation | BaseException], asks: list[Ask]) -> list[bool]:
    return [
        isinstance(each, Generation) and list(each.token_ids) == ask.token_ids
        for each, ask in zip(answers, asks, strict=True)
    ]


def counted(metrics: str, name: str) -> float:
    """Over all transports."""
    lines = [line for line in metrics.splitlines() if line.startswith(f"{name}_total{{")]
    assert lines
    return sum(float(line.split()[1]) for line in lines)


@pytest.mark.parametrize(
    ("transport", "fault"),
    [
        ("shm", "flip_in_flight:0.1"),
        ("torch_dist", "flip_in_flight:0.1"),
        ("shm", "flip_after_write:0.2"),
    ],
)
async def test_a_flipped_byte_is_found(
    transport: str, fault: str, asks: list[Ask], checkpoint: Path
) -> None:
    faults = {"BATON_FAULTS": f"{fault},seed:1"}
    answers, metrics = await answer(checkpoint, asks, transport, faults)
    assert all(are_exact(answers, asks)), answers
    hand_offs = [each.timeline.hand_off for each in answers if isinstance(each, Generation)]
    num_resent = sum(hand_off.num_resent_blocks for hand_off in hand_offs if hand_off)
    print(transport, fault, f"{num_resent} blocks sent again")
    assert num_resent > 0
    assert counted(metrics, "baton_resent_blocks") == num_resent
    assert counted(metrics, "baton_hand_offs") == sum(
        hand_off is not None for hand_off in hand_offs
    )


@pytest.mark.parametrize("fault", ["flip_in_flight:1.0", "flip_after_write:1.0"])
async def test_without_verification_it_is_not(
    fault: str, asks: list[Ask], checkpoint: Path
) -> None:
    trusting = {"BATON_FAULTS": f"{fault},seed:1", "BATON_DECODE_VERIFY_CHECKSUMS": "false"}
    answers, metrics = await answer(checkpoint, asks, "shm", trusting)
    assert counted(metrics, "baton_hand_offs") > 0
    assert counted(metrics, "baton_resent_blocks") == 0
    texts = [each for each in answers if isinstance(each, Generation)]
    # KV of which nothing can be computed ends its request, with this error and no other.
    others = [each for each in answers if not isinstance(each, Generation)]
    assert all(isinstance(each, Internal) and each.field == "logits" for each in others), others
    exact = are_exact(answers, asks)
    assert sum(exact) < len(texts), "wrong tokens, and nobody says so"
