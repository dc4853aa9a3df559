"""Every family and quirk, served over gRPC by real processes, against transformers and against itself.

One small pool per model: requests alone and in batches, cold and warm, chunked and preempted must give
the same bits in `--deterministic`, and transformers' tokens in every mode.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from baton.client.results import Generation
from baton.cluster.local import LocalCluster
from tests.checkpoints import make_checkpoint
from tests.cluster.exactness import (
    QUIRKS,
    SMALL_POOL,
    GreedyAnswers,
    SampledAnswers,
    crowd,
    in_a_batch,
    prompts,
)
from tests.reference import Reference, Ties


@pytest.fixture(scope="module", params=list(QUIRKS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in 16 bits, as models are published, so that packing the weights rounds nothing."""
    family, quirks = QUIRKS[request.param]
    dtype = torch.bfloat16 if request.param == "llama" else torch.float16
    return make_checkpoint(tmp_path_factory.mktemp("model"), family, dtype=dtype, **quirks)


def test_deterministic_is_transformers_and_bit_exact(checkpoint: Path) -> None:
    reference, ties = Reference(checkpoint), Ties()
    with LocalCluster(str(checkpoint), worker_flags=SMALL_POOL) as cluster:
        answers = GreedyAnswers.of(cluster.address)
    answers.check()
    asked = [*prompts(), *crowd()]
    for prompt, generation in zip(asked, [*answers.alone, *answers.crowded], strict=True):
        reference.check_greedy(prompt, generation.token_ids, "fp32", ties)
    ties.check()
    check_logprobs(reference, prompts()[7], answers.checked)


def check_logprobs(reference: Reference, prompt: Sequence[int], got: Generation) -> None:
    expected = reference.logprobs([*prompt, *got.token_ids])
    positions = [*got.prompt_logprobs, *got.logprobs]
    following = [*prompt[1:], *got.token_ids]
    assert len(positions) == len(following)
    for row, (position, token) in enumerate(zip(positions, following, strict=True)):
        assert position.token_id == token
        assert position.logprob == pytest.approx(float(expected[row, token]), abs=1e-4)
    for index, position in enumerate(got.logprobs):
        distribution = expected[len(prompt) - 1 + index]
        best = torch.topk(distribution, 5)
        assert [lp for _, lp in position.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert position.rank == 1 + int((distribution > distribution[position.token_id]).sum())


def test_packed_fp16_is_transformers_up_to_ties(checkpoint: Path) -> None:
    reference, ties = Reference(checkpoint), Ties()
    with LocalCluster(
        str(checkpoint), worker_flags={"num_blocks": 200, "kv_dtype": "fp32"}
    ) as cluster:
        batch = asyncio.run(
            in_a_batch(cluster.address, prompts(), temperature=0.0, ignore_eos=True)
        )
    for prompt, generation in zip(prompts(), batch, strict=True):
        reference.check_greedy(prompt, generation.token_ids, "fp16", ties)
    ties.check()


def test_samples_depend_on_the_seed_alone(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    with LocalCluster(str(folder), worker_flags={"deterministic": True}) as cluster:
        SampledAnswers.of(cluster.address, prompts()[4]).check()
