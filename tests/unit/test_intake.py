"""What is refused before it costs anything, and what is worked on away from the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from baton.errors import DeadlineExceeded, InvalidArgument
from baton.v1 import inference_pb2
from router.grpc.request_reader import RequestReader
from router.intake import Intake
from router.models import Models
from router.off_loop import SHORT, OffLoop
from router.request import Chat, GenerateInput, Message
from router.request_life import RequestLife
from router.routing.pools import Pools
from router.text.model_text import ModelText
from tests.fakes import FakeFrontend
from tests.unit.lives import make_worker

CONTEXT = 8192
HERE = threading.get_ident()


class WatchedText(ModelText):
    """Remembers on which threads it tokenized and rendered."""

    threads: list[int]

    def encode(self, *arguments: Any, **options: Any) -> list[int]:
        self.threads.append(threading.get_ident())
        return super().encode(*arguments, **options)

    def render(self, messages: Sequence[Message]) -> str:
        self.threads.append(threading.get_ident())
        return super().render(messages)


@pytest.fixture
def text(tmp_path: Path) -> WatchedText:
    """Its tokens are bytes."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"vocab_size": 256, "max_position_embeddings": CONTEXT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}.{% endfor %}"
    )
    found = WatchedText.load(tmp_path)
    assert isinstance(found, WatchedText)
    found.threads = []
    return found


def make_intake(text: ModelText, off_loop: OffLoop | None = None) -> Intake:
    pools = Pools()
    pools.put(replace(make_worker("d-0"), max_model_len=CONTEXT))
    return Intake(Models({"m": text}, pools), off_loop)


async def receive(intake: Intake, request: GenerateInput) -> RequestLife:
    return await intake.receive(request, intake.models.get("m"), time.monotonic())


def chat(*contents: str) -> Chat:
    return Chat(tuple(Message("user", content) for content in contents))


@pytest.mark.parametrize(
    "prompt",
    ["a" * CONTEXT, chat(*[""] * (CONTEXT + 1)), (1,) * CONTEXT],
    ids=["text", "chat", "tokens"],
)
async def test_what_can_never_fit_is_not_even_looked_at(text: WatchedText, prompt: Any) -> None:
    with pytest.raises(InvalidArgument, match=f"allows at most {CONTEXT - 1}"):
        await receive(make_intake(text), GenerateInput(prompt=prompt))
    assert text.threads == []


async def test_a_conversation_that_is_too_long_once_rendered_is_not_tokenized(
    text: WatchedText, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "_tokenizer", object())  # cannot tokenize
    with pytest.raises(InvalidArgument, match="characters") as refused:
        await receive(make_intake(text), GenerateInput(prompt=chat("a" * CONTEXT)))
    assert refused.value.field == "chat.messages"


@pytest.mark.parametrize(
    "prompt", ["a" * SHORT, chat("a" * SHORT), chat(*["a"] * 100)], ids=["text", "turn", "turns"]
)
async def test_long_prompts_are_worked_on_elsewhere(text: WatchedText, prompt: Any) -> None:
    life = await receive(make_intake(text), GenerateInput(prompt=prompt))
    assert life._block_ids is not None  # named there, too
    assert text.threads
    assert HERE not in text.threads
    text.threads.clear()
    await make_intake(text).tokenize("m", prompt, special=True)
    assert text.threads
    assert HERE not in text.threads


async def test_short_ones_take_no_detour(text: WatchedText) -> None:
    await receive(make_intake(text), GenerateInput(prompt="hello"))
    assert text.threads == [HERE]


async def test_a_deadline_ends_the_wait_for_a_turn(text: WatchedText) -> None:
    off_loop, go = OffLoop(num_threads=1), threading.Event()
    before = asyncio.create_task(off_loop.run(go.wait, SHORT))
    await asyncio.sleep(0)
    asked = GenerateInput(prompt="a" * SHORT, timeout_s=0.01)
    with pytest.raises(DeadlineExceeded):
        await receive(make_intake(text, off_loop), asked)
    go.set()
    assert await before
    assert text.threads == []


async def test_messages_on_the_wire_are_counted_before_they_are_converted() -> None:
    reader = RequestReader(FakeFrontend())
    request = inference_pb2.GenerateRequest()
    for _ in range(4097):
        request.chat.messages.add()
    with pytest.raises(InvalidArgument, match="4097 entries"):
        await reader.read(request, None, "")
    request = inference_pb2.GenerateRequest()
    request.token_ids.ids.extend([1] * 4097)
    with pytest.raises(InvalidArgument, match="4097 entries"):
        await reader.read(request, None, "")
    request = inference_pb2.GenerateRequest(text="a")
    for _ in range(129):
        request.output_token_ids.add()
    with pytest.raises(InvalidArgument, match="129 samples"):
        await reader.read(request, None, "")
