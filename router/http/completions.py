"""`/v1/completions`: its body, and its answers."""

from __future__ import annotations

from typing import Any

from baton.errors import InvalidArgument
from router.frontend import SampleDelta
from router.http.call import Call, Caller, read_call, read_sampling
from router.http.choices import Choice
from router.http.fields import Fields, as_integers, as_string
from router.http.logprobs import TokenNames, completion_logprobs, prompt_logprobs
from router.http.unserved import refuse_unserved
from router.request import Prompt

MAX_PROMPTS = 128
MAX_CHOICES = 1024  # of one call: prompts times samples of each


def read_completion(body: dict[str, Any], caller: Caller) -> Call:
    fields = Fields(body)
    prompts = _read_prompts(fields.any("prompt"))
    sampling = read_sampling(
        fields, max_tokens=fields.integer("max_tokens"), logprobs=fields.integer("logprobs")
    )
    best_of = fields.integer("best_of")
    if best_of is not None and best_of != (1 if sampling.n is None else sampling.n):
        raise InvalidArgument("must be equal to n: others are not supported", field="best_of")
    call = read_call(fields, caller, prompts, sampling)
    if call.n * len(prompts) > MAX_CHOICES:
        raise InvalidArgument(
            f"times the number of prompts, {len(prompts)}, may be at most {MAX_CHOICES}", field="n"
        )
    refuse_unserved(fields)
    return call


def _read_prompts(value: Any) -> list[Prompt]:
    """A text, texts, token ids, or several lists of token ids."""
    match value:
        case None:
            raise InvalidArgument("is missing", field="prompt")
        case str():
            return [as_string(value, "prompt")]
        case []:
            raise InvalidArgument("the prompt must not be empty", field="prompt")
        case [first, *_] if isinstance(first, str | list):
            if len(value) > MAX_PROMPTS:
                raise InvalidArgument(
                    f"may have at most {MAX_PROMPTS} prompts, has {len(value)}", field="prompt"
                )
            return [_read_one(prompt, f"prompt[{i}]", first) for i, prompt in enumerate(value)]
        case list():
            return [as_integers(value, "prompt")]
        case _:
            raise InvalidArgument("must be text or token ids, or an array of them", field="prompt")


def _read_one(value: Any, path: str, first: str | list[Any]) -> Prompt:
    if isinstance(first, str):
        return as_string(value, path)
    if not isinstance(value, list):
        raise InvalidArgument("must be an array of integers", field=path)
    return as_integers(value, path)


class CompletionAnswer:
    """Choices as a text completion shows them."""

    id_prefix = "cmpl-"
    whole = "text_completion"
    chunk = "text_completion"

    def __init__(self, call: Call, names: TokenNames) -> None:
        self.token_names = names
        self._names = names if call.has_logprobs else None
        self._return_token_ids = call.return_token_ids
        self._text_offsets = [0] * (len(call.inputs) * call.n)

    def choice(self, choice: Choice) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": choice.index,
            "text": choice.text,
            "logprobs": completion_logprobs(choice.logprobs, self._names, 0)[0]
            if self._names
            else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if choice.prompt_logprobs is not None:
            shown["prompt_logprobs"] = prompt_logprobs(choice.prompt_logprobs, self.token_names)
        return shown | ({"token_ids": choice.token_ids} if self._return_token_ids else {})

    def delta(self, index: int, delta: SampleDelta, finish: dict[str, Any]) -> list[dict[str, Any]]:
        logprobs = None
        if self._names and delta.logprobs:
            logprobs, self._text_offsets[index] = completion_logprobs(
                delta.logprobs, self._names, self._text_offsets[index]
            )
        shown = {"index": index, "text": delta.text, "logprobs": logprobs, **finish}
        if self._return_token_ids:
            shown["token_ids"] = delta.token_ids
        return [shown]

    def beside_choices(self, choices: list[Choice]) -> dict[str, Any]:
        return {}
