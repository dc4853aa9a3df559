"""The decoder against transformers, for every family and every field that changes its arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton.scheduling.step_plan import Slice
from tests.engine.harness import Driver, prompt_tokens

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
QUIRKS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    # The recipe that Qwen publishes for long contexts, which leaves max_position_embeddings as it was.
    "qwen2-yarn-recipe": (
        "qwen2",
        {
            "max_position_embeddings": 128,
            "rope_theta": 1e6,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    ),
    "llama-linear-recipe": (
        "llama",
        {
            "max_position_embeddings": 170,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
        },
    ),
    "llama-linear-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    ),
    "llama-odd-sizes": ("llama", {"hidden_size": 56, "intermediate_size": 90, "vocab_size": 333}),
    "llama-head-dim": ("llama", {"head_dim": 48}),
    "llama-sharded": ("llama", {"max_shard_size": "50KB"}),
    "llama-bf16": ("llama", {"dtype": torch.bfloat16}),
    "llama-fp16": ("llama", {"dtype": torch.float16}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 23}),
    "qwen2": ("qwen2", {}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-bias": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


@pytest.fixture(params=QUIRKS)
def folder(request: pytest.FixtureRequest, checkpoint: Callable[..., Path]) -> Path:
    family, quirks = QUIRKS[request.param]
    return checkpoint(family, **quirks)


def reference_logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0].float()
    return logits


def test_logits_equal_transformers(folder: Path, reference: Callable[[Path], Any]) -> None:
    """Prompts of 1 to 300 tokens, whole in one mixed step, and one of them in odd chunks."""
    driver = Driver(folder, dtype="fp32", max_model_len=500)
    prompts = [prompt_tokens(n) for n in (1, 2, 15, 16, 17, 129, 300)]
    found = driver.logits(*[Slice(p, 0, driver.table(len(p))) for p in prompts])
    longest = driver.prefill_logits(prompts[-1], driver.table(300), cuts=(1, 2, 19, 160, 299))
    for prompt, logits in [*zip(prompts, found, strict=True), (prompts[-1], longest)]:
        expected = reference_logits(reference(folder), prompt)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_greedy_tokens_equal_transformers(folder: Path, reference: Callable[[Path], Any]) -> None:
    """A mixed batch, chunked, decoded together; every token is the reference's first choice."""
    driver = Driver(folder, dtype="fp32", max_model_len=500)
    prompts = [prompt_tokens(n, seed=1) for n in (1, 40, 100)]
    outputs = driver.generate(prompts, num_tokens=12, chunk=33)
    num_ties = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == 12
        rows = reference_logits(reference(folder), prompt + output)[len(prompt) - 1 : -1]
        for row, token_id in zip(rows, output, strict=True):
            margin = float(row.max() - row[token_id])
            num_ties += margin > 0
            assert margin < 1e-4
    assert num_ties == 0


def test_packed_fp16_is_close_to_fp32(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("qwen2", tie_word_embeddings=True)
    prompt = prompt_tokens(70)
    exact, packed = (
        driver.prefill_logits(prompt, driver.table(70))
        for driver in (Driver(folder, dtype="fp32"), Driver(folder, dtype="fp16"))
    )
    difference = (exact - packed).abs().max()
    assert 0 < difference < 2e-2, "0 would mean that nothing was stored as fp16"
