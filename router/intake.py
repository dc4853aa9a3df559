"""What comes in becomes a `RequestLife`: checked, tokenized once, and its blocks named.

    receive ── too large at a glance: refused ── short: here ── long: `OffLoop`, in turn ──> RequestLife

Also the two calls that only tokenize. It knows no worker.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence
from functools import partial

from baton import instants
from baton.errors import DeadlineExceeded, InvalidArgument
from baton.sampling_ranges import check_token_ids
from router.models import Models, ServedModel
from router.off_loop import OffLoop
from router.request import Chat, GenerateInput, Prompt
from router.request_life import RequestLife
from router.text.model_text import ModelText
from router.validation import check_at_a_glance, check_request, prompt_field, resolve_sampling

# What takes as long as a character of text that is tokenized counts as one: see `OffLoop.run`.
_CHARS_PER_MESSAGE = 50
_CHARS_PER_OUTPUT_TOKEN = 4  # of a continuation: its text is made once more
_CHARS_PER_STOP_CHAR = 4


class Intake:
    def __init__(self, models: Models, off_loop: OffLoop | None = None) -> None:
        self.models = models
        self._off_loop = off_loop or OffLoop()

    async def receive(
        self, request: GenerateInput, model: ServedModel, received_s: float
    ) -> RequestLife:
        """Raises InvalidArgument where the request is wrong, Overloaded where too much text waits.
        `received_s`: monotonic."""
        check_at_a_glance(request, model.limits)
        timeout_s = request.timeout_s
        left_s = timeout_s and max(0.0, received_s + timeout_s - time.monotonic())
        try:
            async with asyncio.timeout(left_s):
                return await self._off_loop.run(
                    partial(_begin, request, model, received_s),
                    _size(request),
                    tenant=request.tenant,
                    priority=request.priority,
                )
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the prompt was tokenized") from None

    async def tokenize(self, model: str, prompt: str | Chat, *, special: bool) -> list[int]:
        text = _text(self.models.get(model))
        return await self._off_loop.run(
            partial(_encode, text, prompt, special=special), _prompt_size(prompt)
        )

    async def detokenize(
        self, model: str, token_ids: Sequence[int], *, skip_special_tokens: bool
    ) -> str:
        served = self.models.get(model)
        text = _text(served)

        def decode() -> str:
            check_token_ids(token_ids, served.limits.vocab_size, "token_ids")
            return text.decode(token_ids, skip_special_tokens=skip_special_tokens)

        return await self._off_loop.run(decode, len(token_ids))


def _text(model: ServedModel) -> ModelText:
    if model.text is None:
        raise InvalidArgument("this model has no tokenizer", field="model")
    return model.text


def _size(request: GenerateInput) -> int:
    num_output_tokens = sum(map(len, request.output_token_ids))
    num_stop_chars = sum(map(len, request.sampling.stop))
    return (
        _prompt_size(request.prompt)
        + _CHARS_PER_OUTPUT_TOKEN * num_output_tokens
        + _CHARS_PER_STOP_CHAR * num_stop_chars
    )


def _prompt_size(prompt: Prompt) -> int:
    if isinstance(prompt, Chat):
        num_chars = sum(len(message.content) for message in prompt.messages)
        return num_chars + _CHARS_PER_MESSAGE * len(prompt.messages)
    return len(prompt or ())


def _encode(text: ModelText, prompt: str | Chat, *, special: bool) -> list[int]:
    if isinstance(prompt, Chat):
        return text.encode_chat(prompt.messages)
    return text.encode(prompt, add_special_tokens=special)


def _begin(request: GenerateInput, model: ServedModel, received_s: float) -> RequestLife:
    """All that takes time with the size of the request. On any thread."""
    check_request(request, model.limits)
    token_ids = _token_ids(request, model)
    params = resolve_sampling(
        request, model.limits, num_prompt_tokens=len(token_ids), seed=random.getrandbits(63)
    )
    life = RequestLife.begin(
        request.request_id or uuid.uuid4().hex,
        request,
        model,
        params,
        token_ids,
        {instants.RECEIVED: received_s},
    )
    life.name_blocks()
    return life


def _token_ids(request: GenerateInput, model: ServedModel) -> Sequence[int]:
    match request.prompt:
        case str(prompt):
            token_ids = _text(model).encode(prompt, limits=model.limits)
        case Chat(messages):
            token_ids = _text(model).encode_chat(messages, limits=model.limits)
        case given:
            return given or ()
    # A tokenizer may know more tokens than the model: those that a fine-tune added.
    check_token_ids(token_ids, model.limits.vocab_size, prompt_field(request))
    return token_ids
