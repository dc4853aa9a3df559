"""From what a caller passes to a `GenerateRequest`. Values that no message can hold are refused
here, by the name of their field; everything else is the router's to judge."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeGuard, TypeVar

from baton.convert import token_ids_to_proto
from baton.errors import InvalidArgument
from baton.v1 import common_pb2, inference_pb2

# Text, token ids, or a conversation: mappings with "role" and "content".
Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]

Message = TypeVar("Message")


class SamplingOptions(TypedDict, total=False):
    """As `baton.types.SamplingParams`; what is left out (or None) is the model's default."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    seed: int | None
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    n: int | None


class GenerateOptions(SamplingOptions, total=False):
    """`timeout_s`: until the whole request ends with DeadlineExceeded. `priority`: higher goes
    first. `output_token_ids`: per sample, tokens already produced, which the request goes on from.
    `detokenize` False: token ids alone, without text. `traceparent`: the W3C trace that the request
    belongs to."""

    model: str
    request_id: str
    tenant: str
    priority: int
    timeout_s: float | None
    detokenize: bool
    output_token_ids: Sequence[Sequence[int]]
    traceparent: str


def build(prompt: Prompt, options: GenerateOptions) -> inference_pb2.GenerateRequest:
    """The request, with an id of its own where the caller gave none: one request keeps one id over
    all the replicas that serve it. `timeout_s` and `traceparent` do not travel in it."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    request = inference_pb2.GenerateRequest()
    request_id = given.pop("request_id", "") or uuid.uuid4().hex
    _fill(request, "request_id", request_id)
    for name in ("model", "tenant", "priority", "detokenize"):
        if name in given:
            _fill(request, name, given.pop(name))
    forced = given.pop("output_token_ids", ())
    request.output_token_ids.extend(_made("output_token_ids", token_ids_to_proto, forced))
    if isinstance(stop := given.get("stop"), str):
        given["stop"] = [stop]
    request.sampling.SetInParent()
    for name, value in given.items():
        if name in SamplingOptions.__annotations__:
            _fill(request.sampling, name, value, prefix="sampling.")
        elif name not in GenerateOptions.__annotations__:
            raise TypeError(f"unknown option {name!r}")
    _fill_prompt(request, prompt)
    return request


def chat(messages: Sequence[Mapping[str, str]]) -> inference_pb2.Chat:
    return inference_pb2.Chat(messages=[inference_pb2.ChatMessage(**each) for each in messages])


def is_chat(prompt: Prompt) -> TypeGuard[Sequence[Mapping[str, str]]]:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _fill_prompt(request: inference_pb2.GenerateRequest, prompt: Any) -> None:
    if isinstance(prompt, str):
        _fill(request, "text", prompt)
    elif is_chat(prompt):
        request.chat.CopyFrom(_made("chat", chat, prompt))
    else:
        request.token_ids.CopyFrom(
            _made("token_ids", lambda ids: common_pb2.TokenIds(ids=ids), prompt)
        )


def _fill(message: Any, name: str, value: object, *, prefix: str = "") -> None:
    """Sets one field through the constructor, which takes scalars, lists and mappings alike."""
    message.MergeFrom(_made(prefix + name, lambda given: type(message)(**{name: given}), value))


def _made(field: str, make: Callable[[Any], Message], value: object) -> Message:
    try:
        return make(value)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{value!r:.200}: {error}", field=field) from error
