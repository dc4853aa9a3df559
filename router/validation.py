"""Checks a request and resolves it into `SamplingParams`. Pure: no clock, no random, no tokenizer.

Two steps, because tokenizing lies between them:

    check_request(request, limits)            everything that can be said before tokenizing
    resolve_sampling(request, limits, ...)    needs the number of prompt tokens

Every refusal is an `InvalidArgument` that names the field as the gRPC API spells it
(`sampling.top_p`, `chat.messages`) and says what is allowed.

The context holds prompt and output together. Unset, `max_tokens` is what the prompt leaves of it;
an explicit value that does not fit is an error and not clipped, since a shorter answer than asked
for would look like the model's own decision (as in vLLM and in OpenAI's API).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from baton.errors import InvalidArgument
from baton.types import SamplingParams
from router.request import Chat, GenerateInput, SamplingDefaults, SamplingInput

_T = TypeVar("_T")

MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256  # of one stop string; bounds the text that is held back while streaming
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_LOGIT_BIAS_VALUE = 100.0
MAX_PENALTY = 2.0
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows. `has_text` is False for a model without a tokenizer."""

    vocab_size: int
    max_model_len: int
    has_text: bool = True
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


def check_request(request: GenerateInput, limits: ModelLimits) -> None:
    """Refuses whatever is wrong whatever the prompt's number of tokens turns out to be."""
    _check_prompt(request, limits)
    _check_sampling(request.sampling, limits)
    _check_continuation(request, limits)
    if request.timeout_s is not None and math.isnan(request.timeout_s):
        raise InvalidArgument("must be a number of seconds, not NaN", field="timeout_s")


def resolve_sampling(
    request: GenerateInput, limits: ModelLimits, *, num_prompt_tokens: int, seed: int
) -> SamplingParams:
    """Sampling with every value set, for a request that passed `check_request`.

    `seed` is used where the request brings none; the caller draws it.
    """
    sampling, defaults = request.sampling, limits.defaults
    check_prompt_length(num_prompt_tokens, limits, field=prompt_field(request))
    max_tokens = _resolve_max_tokens(sampling, limits, num_prompt_tokens)
    min_tokens = _or(sampling.min_tokens, 0)
    if min_tokens > max_tokens:
        raise InvalidArgument(
            f"must be at most max_tokens ({max_tokens}), is {min_tokens}",
            field="sampling.min_tokens",
        )
    for index, token_ids in enumerate(request.output_token_ids):
        if len(token_ids) > max_tokens:
            raise InvalidArgument(
                f"has {len(token_ids)} tokens already, more than max_tokens ({max_tokens})",
                field=f"output_token_ids[{index}]",
            )
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_or(sampling.temperature, defaults.temperature),
        top_k=max(0, _or(sampling.top_k, defaults.top_k)),
        top_p=_or(sampling.top_p, defaults.top_p),
        min_p=_or(sampling.min_p, 0.0),
        repetition_penalty=_or(sampling.repetition_penalty, defaults.repetition_penalty),
        frequency_penalty=_or(sampling.frequency_penalty, 0.0),
        presence_penalty=_or(sampling.presence_penalty, 0.0),
        seed=_or(sampling.seed, seed),
        logit_bias=dict(sampling.logit_bias),
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        n=_or(sampling.n, 1),
    )


def prompt_field(request: GenerateInput) -> str:
    """The name of the field that the prompt came in."""
    match request.prompt:
        case None:
            return "prompt"
        case Chat():
            return "chat.messages"
        case str():
            return "text"
        case _:
            return "token_ids"


def check_prompt_length(num_prompt_tokens: int, limits: ModelLimits, *, field: str) -> None:
    """At least one token must be left of the context for the output."""
    if num_prompt_tokens == 0:
        raise InvalidArgument("the prompt has no tokens; at least one is needed", field=field)
    if num_prompt_tokens >= limits.max_model_len:
        raise InvalidArgument(
            f"the prompt has {num_prompt_tokens} tokens; the model's context of "
            f"{limits.max_model_len} allows at most {limits.max_model_len - 1}",
            field=field,
        )


def _resolve_max_tokens(
    sampling: SamplingInput, limits: ModelLimits, num_prompt_tokens: int
) -> int:
    remaining = limits.max_model_len - num_prompt_tokens
    if sampling.max_tokens is None:
        return remaining
    if sampling.max_tokens > remaining:
        raise InvalidArgument(
            f"is {sampling.max_tokens}, but the prompt's {num_prompt_tokens} tokens leave "
            f"{remaining} of the model's context of {limits.max_model_len}",
            field="sampling.max_tokens",
        )
    return sampling.max_tokens


def _check_prompt(request: GenerateInput, limits: ModelLimits) -> None:
    name = prompt_field(request)
    match request.prompt:
        case None:
            raise InvalidArgument("one of text, token_ids or chat is needed", field=name)
        case Chat(messages):
            if not messages:
                raise InvalidArgument("at least one message is needed", field=name)
            for index, message in enumerate(messages):
                if not message.role:
                    raise InvalidArgument("must not be empty", field=f"{name}[{index}].role")
        case str(text):
            if not text:
                raise InvalidArgument("the prompt must not be empty", field=name)
        case token_ids:
            check_prompt_length(len(token_ids), limits, field=name)
            check_token_ids(token_ids, limits, name)
    if not limits.has_text:
        if isinstance(request.prompt, str | Chat):
            raise InvalidArgument("this model has no tokenizer; send token ids", field=name)
        if request.sampling.stop:
            raise InvalidArgument(
                "this model has no tokenizer; use stop_token_ids", field="sampling.stop"
            )


def _check_continuation(request: GenerateInput, limits: ModelLimits) -> None:
    if not request.output_token_ids:
        return
    num_samples = _or(request.sampling.n, 1)
    if len(request.output_token_ids) != num_samples:
        raise InvalidArgument(
            f"must have one entry per sample: n is {num_samples}, "
            f"there are {len(request.output_token_ids)}",
            field="output_token_ids",
        )
    for index, token_ids in enumerate(request.output_token_ids):
        check_token_ids(token_ids, limits, f"output_token_ids[{index}]")
    if request.sampling.prompt_logprobs is not None and any(request.output_token_ids):
        raise InvalidArgument(
            "contradicts output_token_ids: prompt log-probabilities come before the first output "
            "token, so a continuation has them already",
            field="sampling.prompt_logprobs",
        )


def _check_sampling(sampling: SamplingInput, limits: ModelLimits) -> None:
    _check_int("max_tokens", sampling.max_tokens, 1)
    _check_int("min_tokens", sampling.min_tokens, 0)
    _check_int("top_k", sampling.top_k, -1, note="0 or -1 is off")
    _check_int("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    _check_int("prompt_logprobs", sampling.prompt_logprobs, 0, MAX_LOGPROBS)
    _check_int("n", sampling.n, 1, MAX_N)
    _check_int("seed", sampling.seed, 0, MAX_SEED)
    _check_float("temperature", sampling.temperature, 0.0)
    _check_float("top_p", sampling.top_p, 0.0, 1.0, open_low=True)
    _check_float("min_p", sampling.min_p, 0.0, 1.0)
    _check_float("repetition_penalty", sampling.repetition_penalty, 0.0, open_low=True)
    _check_float("frequency_penalty", sampling.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_float("presence_penalty", sampling.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_stops(sampling, limits)
    _check_logit_bias(sampling, limits)


def _check_stops(sampling: SamplingInput, limits: ModelLimits) -> None:
    _check_count("stop", len(sampling.stop), MAX_STOP_STRINGS)
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidArgument(
                f"must have 1 to {MAX_STOP_CHARS} characters, has {len(stop)}",
                field=f"sampling.stop[{index}]",
            )
    _check_count("stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
    check_token_ids(sampling.stop_token_ids, limits, "sampling.stop_token_ids")


def _check_logit_bias(sampling: SamplingInput, limits: ModelLimits) -> None:
    _check_count("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIAS)
    for token_id, bias in sampling.logit_bias.items():
        check_token_ids((token_id,), limits, "sampling.logit_bias")
        name = f"logit_bias[{token_id}]"
        _check_float(name, bias, -MAX_LOGIT_BIAS_VALUE, MAX_LOGIT_BIAS_VALUE)


def check_token_ids(token_ids: Sequence[int], limits: ModelLimits, field: str) -> None:
    # min and max run in C: a prompt of 100,000 ids is checked in about 2 ms
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < limits.vocab_size):
        return
    index, token_id = next(
        (i, t) for i, t in enumerate(token_ids) if not 0 <= t < limits.vocab_size
    )
    raise InvalidArgument(
        f"token id {token_id} at index {index} is outside of the vocabulary, "
        f"0 to {limits.vocab_size - 1}",
        field=field,
    )


def _check_count(name: str, count: int, maximum: int) -> None:
    if count > maximum:
        raise InvalidArgument(
            f"may have at most {maximum} entries, has {count}", field=f"sampling.{name}"
        )


def _check_int(
    name: str, value: int | None, low: int, high: int | None = None, *, note: str = ""
) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"from {low} to {high}"
    note = f" ({note})" if note else ""
    raise InvalidArgument(f"must be {allowed}{note}, is {value}", field=f"sampling.{name}")


def _check_float(
    name: str, value: float | None, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    if value is None:
        return
    above_low = value > low if open_low else value >= low
    if math.isfinite(value) and above_low and value <= high:  # NaN compares False
        return
    bound = "above" if open_low else "at least"
    allowed = f"{bound} {low:g}" + ("" if math.isinf(high) else f" and at most {high:g}")
    raise InvalidArgument(
        f"must be a finite number {allowed}, is {value}", field=f"sampling.{name}"
    )


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
