"""What the tests of exactness ask of a cluster, whichever way it computes prompts: the same questions
alone, warm, in batches, in a crowd, by seed, continued."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from baton import AsyncClient, Client
from baton.client.results import Generation

NUM_NEW = 64
LENGTHS = (1, 2, 15, 63, 64, 65, 129, 300, 700, 2000)
# 44 blocks of 64: the longest request fits, the batch of all does not
SMALL_POOL: dict[str, Any] = {"deterministic": True, "num_blocks": 44, "max_chunk_tokens": 160}

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
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "ignore_eos": True}


def prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(300) for _ in range(length)] for length in LENGTHS]


def crowd() -> list[list[int]]:
    """Many short prompts that all need a second block near their end. By then they have long filled the
    pool with their first ones, however slowly they were sent: some must yield."""
    rng = random.Random(2)
    return [[rng.randrange(300) for _ in range(12)] for _ in range(64)]


def greedy(client: Client, prompt: Sequence[int], **options: Any) -> Generation:
    return client.generate(prompt, temperature=0.0, max_tokens=NUM_NEW, ignore_eos=True, **options)


async def in_a_batch(
    address: str, batch: Sequence[Sequence[int]], **options: Any
) -> list[Generation]:
    async with AsyncClient(address) as client:
        calls = (client.generate(prompt, max_tokens=NUM_NEW, **options) for prompt in batch)
        return list(await asyncio.gather(*calls))


@dataclass
class GreedyAnswers:
    """`few` are the first of the crowd, asked one by one. `checked` has log-probabilities."""

    alone: list[Generation]
    warm: list[Generation]
    batch: list[Generation]
    few: list[Generation]
    crowded: list[Generation]
    checked: Generation

    @classmethod
    def of(cls, address: str) -> GreedyAnswers:
        with Client(address) as client:
            alone = [greedy(client, prompt) for prompt in prompts()]
            warm = [greedy(client, prompt) for prompt in prompts()]
            few = [greedy(client, prompt) for prompt in crowd()[:6]]
            checked = client.generate(
                prompts()[7], temperature=0.0, max_tokens=8, logprobs=5, prompt_logprobs=0
            )
        batch = asyncio.run(in_a_batch(address, prompts() * 2, temperature=0.0, ignore_eos=True))
        crowded = asyncio.run(in_a_batch(address, crowd(), temperature=0.0, ignore_eos=True))
        return cls(alone, warm, batch, few, crowded, checked)

    def check(self) -> None:
        """The same bits whatever the cache, the batch and the crowd."""
        alone = tokens(self.alone)
        assert {len(token_ids) for token_ids in (*alone, *tokens(self.crowded))} == {NUM_NEW}
        assert tokens(self.warm) == alone
        assert tokens(self.batch) == 2 * alone
        assert tokens(self.crowded[:6]) == tokens(self.few)
        assert any(generation.usage.num_cached_tokens for generation in self.warm)
        assert any(g.timeline.num_preemptions for g in self.crowded), (
            "the pool was not small enough"
        )


@dataclass
class SampledAnswers:
    """One prompt by two seeds, several samples of it, and its continuations from some cuts."""

    alone: Generation
    other: Generation
    several: Generation
    continued: dict[int, Generation]
    batch: list[Generation]

    @classmethod
    def of(cls, address: str, prompt: Sequence[int]) -> SampledAnswers:
        with Client(address) as client:

            def ask(**options: Any) -> Generation:
                return client.generate(prompt, max_tokens=NUM_NEW, **SAMPLED | options)

            alone = ask(seed=7)
            continued = {
                cut: ask(seed=7, output_token_ids=[alone.token_ids[:cut]]) for cut in (1, 5, 63)
            }
            other, several = ask(seed=8), ask(seed=7, n=4)
        batch = asyncio.run(in_a_batch(address, [prompt, *prompts()], seed=7, **SAMPLED))
        return cls(alone, other, several, continued, batch)

    def check(self) -> None:
        """Alone, in a batch, continued from any prefix: the same seed draws the same sample."""
        for cut, rest in self.continued.items():
            assert rest.token_ids == self.alone.token_ids[cut:]
        assert self.batch[0].token_ids == self.alone.token_ids
        assert self.other.token_ids != self.alone.token_ids
        samples = [sample.token_ids for sample in self.several.samples]
        assert samples[0] == self.alone.token_ids
        assert len(set(samples)) == 4


def tokens(generations: Sequence[Generation]) -> list[tuple[int, ...]]:
    return [tuple(generation.token_ids) for generation in generations]
