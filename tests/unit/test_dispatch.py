"""What the router refuses once a prompt is tokenized, without a worker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from baton.errors import InvalidArgument
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.gate import Gate
from router.intake import Intake
from router.models import Models
from router.request import Chat, GenerateInput, Message, Prompt
from router.routing.pools import Pools
from router.text.model_text import ModelText
from tests.unit.lives import make_worker


@pytest.fixture
def dispatcher(tmp_path: Path) -> Dispatcher:
    """Its model knows the 256 bytes, and a fine-tune has added `<pad>` to its tokenizer as 256."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"vocab_size": 256, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    pools = Pools()
    pools.put(make_worker("w"))
    texts = {"m": ModelText.load(tmp_path)}
    nobody: Any = None
    return Dispatcher(RouterConfig(), Intake(Models(texts, pools)), nobody, nobody, Gate(), nobody)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [("<pad>", "text"), (Chat((Message("user", "<pad>"),)), "chat.messages")],
)
async def test_a_token_that_the_model_lacks_is_refused(
    dispatcher: Dispatcher, prompt: Prompt, field: str
) -> None:
    updates = cast(AsyncIterator[Any], dispatcher.generate(GenerateInput(prompt)))
    with pytest.raises(InvalidArgument, match="token id 256 at index 0") as caught:
        await anext(updates)
    assert caught.value.field == field
