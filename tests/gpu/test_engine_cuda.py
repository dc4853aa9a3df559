"""The engine on CUDA: the same tokens as on the CPU, in every dtype, and bit-exact when asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baton.scheduling.step_plan import Slice
from tests.engine.harness import Driver, prompt_tokens

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoints = pytest.importorskip("tests.checkpoints")  # needs transformers and tokenizers
    made: Path = checkpoints.make_checkpoint(tmp_path_factory.mktemp("qwen3"), "qwen3")
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("fp16", 3e-2), ("bf16", 3e-1)])
def test_logits_are_those_of_the_cpu(folder: Path, dtype: str, tolerance: float) -> None:
    prompts = [prompt_tokens(n) for n in (1, 17, 130)]
    found = []
    for settings in ({"dtype": "fp32"}, {"dtype": dtype, "device": "cuda"}):
        driver = Driver(folder, **settings)
        tables = [driver.table(len(p) + 1) for p in prompts]
        whole = driver.logits(*[Slice(p, 0, t) for p, t in zip(prompts, tables, strict=True)])
        decoded = driver.logits(
            *[Slice([5], len(p), t) for p, t in zip(prompts, tables, strict=True)]
        )
        found.append(torch.cat([*whole, *decoded]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=tolerance)


def test_greedy_tokens_are_those_of_the_cpu(folder: Path) -> None:
    prompts = [prompt_tokens(n, seed=1) for n in (3, 60)]
    cpu, cuda = (
        Driver(folder, dtype="fp32", device=device).generate(prompts, 16, chunk=25)
        for device in ("cpu", "cuda")
    )
    assert cuda == cpu


def test_deterministic_is_bit_exact(folder: Path) -> None:
    driver = Driver(folder, device="cuda", deterministic=True)
    prompt = prompt_tokens(70)
    whole = driver.prefill_logits(prompt, driver.table(70))
    assert torch.equal(driver.prefill_logits(prompt, driver.table(70), cuts=(1, 9, 50)), whole)


def test_dummy_shape_decodes_in_bf16() -> None:
    driver = Driver("llama-125m", load_format="dummy", device="cuda", num_blocks=64)
    output = driver.generate([prompt_tokens(200), prompt_tokens(50)], 8)
    assert [len(tokens) for tokens in output] == [8, 8]
    assert driver.runner.layout.dtype == "bf16"
