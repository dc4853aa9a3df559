"""Prompts computed on prefill workers, their KV handed to decode workers: the same bits as on one
aggregated worker, over every transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from baton.client.results import Generation
from baton.cluster.local import LocalCluster
from tests.checkpoints import make_checkpoint
from tests.cluster.exactness import (
    LENGTHS,
    QUIRKS,
    SMALL_POOL,
    GreedyAnswers,
    SampledAnswers,
    prompts,
)

# Tiny models prefill faster than a hand-off takes: only this price sends prompts away.
ALWAYS_REMOTE = {"BATON_ROUTER_POLICY_INTERFERENCE": "1000000"}
KV_BYTES_PER_TOKEN = 2 * 3 * 2 * 16 * 4  # K and V, layers, KV heads, head_dim, fp32


@pytest.mark.parametrize(
    ("transport", "model"), [("shm", "llama"), ("torch_dist", "mistral sliding window")]
)
def test_disaggregated_is_aggregated(transport: str, model: str, tmp_path: Path) -> None:
    family, quirks = QUIRKS[model]
    folder = make_checkpoint(tmp_path / "model", family, dtype=torch.bfloat16, **quirks)
    apart_flags: dict[str, Any] = {**SMALL_POOL, "transport": [transport]}
    with LocalCluster(str(folder), worker_flags=SMALL_POOL) as cluster:
        one = GreedyAnswers.of(cluster.address)
        one_sampled = SampledAnswers.of(cluster.address, prompts()[7])
    with LocalCluster(
        str(folder),
        num_prefill_workers=1,
        worker_flags=apart_flags,
        environment=ALWAYS_REMOTE,
    ) as cluster:
        apart = GreedyAnswers.of(cluster.address)
        apart_sampled = SampledAnswers.of(cluster.address, prompts()[7])
        assert all(process.alive for process in cluster.processes()), cluster.logs()
    apart.check()
    apart_sampled.check()
    for ours, reference in (
        (apart.alone, one.alone),
        (apart.warm, one.warm),
        (apart.batch, one.batch),
        (apart.crowded, one.crowded),
        ([apart.checked], [one.checked]),
        (
            [apart_sampled.alone, apart_sampled.other, apart_sampled.several],
            [one_sampled.alone, one_sampled.other, one_sampled.several],
        ),
        (list(apart_sampled.continued.values()), list(one_sampled.continued.values())),
        (apart_sampled.batch, one_sampled.batch),
    ):
        assert [g.samples for g in ours] == [g.samples for g in reference]
        assert [g.prompt_logprobs for g in ours] == [g.prompt_logprobs for g in reference]
    for length, generation in zip(LENGTHS, apart.alone, strict=True):
        if length >= 300:
            check_moved(generation, length)
    for generation in (*apart.batch, apart.checked, apart_sampled.several):
        assert generation.timeline.prefill_worker or generation.usage.num_prompt_tokens < 300


def check_moved(generation: Generation, num_tokens: int) -> None:
    """The whole prompt was computed elsewhere, and exactly its blocks were moved."""
    timeline = generation.timeline
    assert timeline.prefill_worker == "prefill-1"
    assert timeline.decode_worker == "worker-0"
    assert timeline.hand_off is not None
    num_lacking = -(-num_tokens // 64) - timeline.num_cached_tokens // 64
    assert timeline.hand_off.transfer_bytes == num_lacking * 64 * KV_BYTES_PER_TOKEN > 0
