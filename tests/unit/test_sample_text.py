"""One sample's text on its way to the client."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from baton.types import FinishReason, SamplingParams
from router.text.model_text import ModelText
from router.text.sample_text import SampleText
from router.workers.decode_stream import Row


@pytest.fixture
def text(tmp_path: Path) -> ModelText:
    """Its tokens are bytes."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"vocab_size": 256, "max_position_embeddings": 64}')
    return ModelText.load(tmp_path)


@pytest.mark.parametrize("num_forced", [0, 1, 3, 5])
@pytest.mark.parametrize(
    ("min_tokens", "told"), [(0, "a"), (3, "a"), (4, "a--b"), (6, "a--b"), (7, "a--b--c")]
)
def test_min_tokens_holds_stop_strings_back(
    text: ModelText, min_tokens: int, told: str, num_forced: int
) -> None:
    """The same however much of it is a continuation."""
    params = SamplingParams(max_tokens=20, min_tokens=min_tokens, stop=("--",))
    tokens = text.encode("a--b--c")
    sample = SampleText(0, params, text, (), tokens[:num_forced])
    before = SampleText(0, params, text, ())
    given = "".join(
        before.push([Row(0, token)], None).text
        for token in tokens[:num_forced]
        if not before.finished
    )
    for token in tokens[num_forced:]:
        if sample.finished:
            break
        given += sample.push([Row(0, token)], None).text
    assert given == told
    assert (sample.finish_reason is FinishReason.STOP) is (min_tokens < 7)
