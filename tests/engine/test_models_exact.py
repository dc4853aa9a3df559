"""`deterministic`: a row's bits do not depend on the batch, the chunking or the cache it came in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from baton.engine.linears import TiledLinear
from baton.scheduling.step_plan import Slice
from tests.engine.harness import Driver, prompt_tokens

QUIRKS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"hidden_size": 56, "intermediate_size": 90, "vocab_size": 333}),
    ("mistral", {"sliding_window": 23}),
    ("qwen3", {"attention_bias": True}),
]


@pytest.fixture(params=QUIRKS, ids=lambda quirk: f"{quirk[0]}-{len(quirk[1])}")
def driver(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Path], backend: None
) -> Driver:
    family, quirks = request.param
    return Driver(checkpoint(family, **quirks), deterministic=True)


def test_chunking_changes_no_bit(driver: Driver) -> None:
    prompt = prompt_tokens(150)
    whole = driver.prefill_logits(prompt, driver.table(150))
    odd = driver.prefill_logits(prompt, driver.table(150), cuts=(1, 7, 8, 39, 40, 149))
    token_by_token = driver.prefill_logits(prompt[:40], driver.table(40), cuts=range(1, 40))
    assert torch.equal(odd, whole)
    assert torch.equal(token_by_token, whole[:40])


def test_company_changes_no_bit(driver: Driver) -> None:
    prompt = prompt_tokens(50)
    alone = driver.prefill_logits(prompt, driver.table(50))
    others = [prompt_tokens(n, seed=3) for n in (1, 33, 90)]
    before, after = others[:2], others[2:]
    tables = [driver.table(len(p)) for p in [*before, prompt, *after]]
    slices = [Slice(p, 0, t) for p, t in zip([*before, prompt, *after], tables, strict=True)]
    assert torch.equal(driver.logits(*slices)[2], alone)
    # The last token again, as a decode row among decode rows.
    again = [Slice(s.token_ids[-1:], s.end - 1, s.block_table) for s in slices]
    assert torch.equal(driver.logits(*again)[2], alone[-1:])


def test_cached_prefix_changes_no_bit(driver: Driver) -> None:
    prompt = prompt_tokens(100)
    table = driver.table(100)
    cold = driver.prefill_logits(prompt, table)
    other = table[:3] + driver.table(100 - 48)  # the first three blocks are shared
    warm = driver.logits(Slice(prompt[48:], 48, other))[0]
    assert torch.equal(warm, cold[48:])


def test_tiles_do_not_see_their_other_rows() -> None:
    """What the mode rests on; the same rows in a plain GEMM of other sizes do differ."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 331, generator=generator)
    rows = torch.randn(70, 331, generator=generator)
    linear = TiledLinear(weight, None)
    whole = linear(rows)
    for begin, end in ((0, 1), (5, 7), (3, 20), (15, 17), (37, 70)):
        assert torch.equal(linear(rows[begin:end]), whole[begin:end])
    torch.testing.assert_close(whole, rows @ weight.T, rtol=1e-4, atol=1e-4)
