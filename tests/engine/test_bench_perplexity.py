"""The perplexity of a cache's dtype, on a text and a model of the test's own."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from baton.bench.perplexity import PerplexitySettings, measure
from baton.errors import ConfigError
from tests.engine.harness import Driver

TEXT = "".join(f"{n} and {n * n} are numbers, as every child knows.\n" for n in range(200))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    return path


def test_rows_say_what_each_dtype_costs(checkpoint: Callable[..., Path], text: Path) -> None:
    settings = PerplexitySettings(
        checkpoint("llama"), text, ("fp32", "int8"), window=64, num_tokens=300, block_size=16
    )
    steps: list[str] = []
    result = measure(settings, lambda what, done, total: steps.append(f"{what} {done}/{total}"))
    prefilled, decoded, quantized, grown = result["rows"]
    assert steps[-1] == "int8 decode 4/4"
    assert (quantized["kv_dtype"], grown["feed"]) == ("int8", "decode")
    assert decoded["perplexity"] == pytest.approx(prefilled["perplexity"], rel=1e-4)
    assert quantized["kv_bytes_per_token"] == pytest.approx(
        prefilled["kv_bytes_per_token"] / 4, rel=0.04
    )
    for row, exact in ((quantized, prefilled), (grown, decoded)):
        ratio = row["perplexity"] / exact["perplexity"]
        assert math.log(ratio) == pytest.approx(row["added_nats_per_token"], abs=1e-9)
        assert 0 < abs(row["added_nats_per_token"]) < 0.05
        assert row["ci95"][0] < row["added_nats_per_token"] < row["ci95"][1]


def test_one_window_gives_the_models_own_perplexity(
    checkpoint: Callable[..., Path], text: Path
) -> None:
    """Counted token by token from the logits of one prefill of the whole text."""
    folder = checkpoint("llama")
    settings = PerplexitySettings(folder, text, ("fp32",), window=512, num_tokens=100)
    result = measure(settings, lambda *_: None)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    held_out = tokenizer.encode(TEXT[len(TEXT) * 9 // 10 :], add_special_tokens=False).ids[:100]
    tokens = [*tokenizer.encode("").ids, *held_out]
    driver = Driver(folder)
    logprobs = driver.prefill_logits(tokens, driver.table(len(tokens))).log_softmax(-1)
    prefix = len(tokens) - 100
    counted = range(max(1, prefix), len(tokens))
    nats = -sum(float(logprobs[at - 1, tokens[at]]) for at in counted)
    assert result["rows"][0]["perplexity"] == pytest.approx(math.exp(nats / 100), rel=1e-3)


def test_a_text_that_is_none_is_named(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_text("not compressed")
    with pytest.raises(ConfigError, match=r"plain\.gz"):
        measure(PerplexitySettings(checkpoint("llama"), tmp_path / "plain.gz"), lambda *_: None)
