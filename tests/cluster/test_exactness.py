"""Every family and quirk, served over gRPC by real processes, against transformers and against itself.

One small pool per model: requests alone and in batches, cold and warm, chunked and preempted must give
the same bits in `--deterministic`, and transformers' tokens in every mode.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from baton import AsyncClient, Client
from baton.client.results import Generation
from cluster.local import LocalCluster
from tests.checkpoints import make_checkpoint
from tests.reference import Reference, Ties

NUM_NEW = 64
LENGTHS = (1, 2, 15, 63, 64, 65, 129, 300, 700, 2000)

QUIRKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3 rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 512,
            }
        },
    ),
    "llama tied, biased": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral sliding window": ("mistral", {"sliding_window": 100}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(300) for _ in range(length)] for length in LENGTHS]


def crowd() -> list[list[int]]:
    """Many prompts of nearly a block: all fit the pool at first, and all need a second block at once."""
    rng = random.Random(2)
    return [[rng.randrange(300) for _ in range(50)] for _ in range(30)]


def greedy(client: Client, prompt: Sequence[int], **options: Any) -> Generation:
    return client.generate(prompt, temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, **options)


async def in_a_batch(
    address: str, batch: Sequence[Sequence[int]], **options: Any
) -> list[Generation]:
    async with AsyncClient(address) as client:
        calls = (client.generate(prompt, max_tokens=NUM_NEW, **options) for prompt in batch)
        return list(await asyncio.gather(*calls))


@pytest.fixture(scope="module", params=list(QUIRKS))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in 16 bits, as models are published, so that packing the weights rounds nothing."""
    family, quirks = QUIRKS[request.param]
    dtype = torch.bfloat16 if request.param == "llama" else torch.float16
    return make_checkpoint(tmp_path_factory.mktemp("model"), family, dtype=dtype, **quirks)


def test_deterministic_is_transformers_and_bit_exact(checkpoint: Path) -> None:
    reference, ties = Reference(checkpoint), Ties()
    # 44 blocks of 64: the longest request fits, the batch of all does not
    flags = {"deterministic": True, "num_blocks": 44, "max_chunk_tokens": 160}
    with LocalCluster(str(checkpoint), worker_flags=flags) as cluster:
        with Client(cluster.address) as client:
            alone = [greedy(client, prompt) for prompt in prompts()]
            warm = [greedy(client, prompt) for prompt in prompts()]
            few = [greedy(client, prompt) for prompt in crowd()[:6]]
            checked = client.generate(
                prompts()[7], temperature=0.0, max_tokens=8, logprobs=5, prompt_logprobs=0
            )
        batch = asyncio.run(
            in_a_batch(cluster.address, prompts() * 2, temperature=0.0, ignore_eos=True)
        )
        crowded = asyncio.run(
            in_a_batch(cluster.address, crowd(), temperature=0.0, ignore_eos=True)
        )
    for prompt, generation in zip([*prompts(), *crowd()], [*alone, *crowded], strict=True):
        assert len(generation.token_ids) == NUM_NEW
        reference.check_greedy(prompt, generation.token_ids, "fp32", ties)
    ties.check()
    assert [g.token_ids for g in warm] == [g.token_ids for g in alone]
    assert [g.token_ids for g in batch] == 2 * [g.token_ids for g in alone]
    assert any(g.usage.num_cached_tokens for g in warm)
    assert [g.token_ids for g in crowded[:6]] == [g.token_ids for g in few]
    assert any(g.timeline.num_preemptions for g in crowded), "the pool was not small enough"
    check_logprobs(reference, prompts()[7], checked)


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
    """Alone, in a batch, continued from any prefix: the same seed draws the same sample."""
    folder = make_checkpoint(tmp_path / "model", "llama")
    prompt = prompts()[4]
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "ignore_eos": True}
    with LocalCluster(str(folder), worker_flags={"deterministic": True}) as cluster:
        with Client(cluster.address) as client:
            alone = client.generate(prompt, seed=7, max_tokens=NUM_NEW, **options)
            other = client.generate(prompt, seed=8, max_tokens=NUM_NEW, **options)
            several = client.generate(prompt, seed=7, n=4, max_tokens=NUM_NEW, **options)
            for cut in (1, 5, 63):
                rest = client.generate(
                    prompt,
                    seed=7,
                    max_tokens=NUM_NEW,
                    output_token_ids=[alone.token_ids[:cut]],
                    **options,
                )
                assert rest.token_ids == alone.token_ids[cut:]
        batch = asyncio.run(in_a_batch(cluster.address, [prompt, *prompts()], seed=7, **options))
    assert batch[0].token_ids == alone.token_ids
    assert other.token_ids != alone.token_ids
    samples = [sample.token_ids for sample in several.samples]
    assert samples[0] == alone.token_ids
    assert len(set(samples)) == 4
