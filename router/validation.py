"""Checks a request and resolves it into `SamplingParams`. Pure: no clock, no random, no tokenizer.

In steps, because waiting and tokenizing lie between them:

    check_at_a_glance(request, limits)        what needs no time, however large the request is
    check_request(request, limits)            everything that can be said before tokenizing
    resolve_sampling(request, limits, ...)    needs the number of prompt tokens

Sampling values have the ranges of `baton.sampling_ranges`. Every refusal is an `InvalidArgument` that
names the field as the gRPC API spells it (`sampling.top_p`, `chat.messages`) and says what is allowed.

The context holds prompt and output together. Unset, `max_tokens` is what the prompt leaves of it;
an explicit value that does not fit is an error and not clipped, since a shorter answer than asked
for would look like the model's own decision (as in vLLM and in OpenAI's API).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TypeVar

from baton.errors import ContextLengthExceeded, InvalidArgument
from baton.sampling_ranges import check_sampling, check_token_ids
from baton.types import SamplingParams
from router.request import Chat, GenerateInput, SamplingDefaults, SamplingInput

_T = TypeVar("_T")

MAX_REQUEST_ID_CHARS = 128
MAX_TENANT_CHARS = 128
_REQUEST_ID = re.compile(rf"[A-Za-z0-9._:\-]{{1,{MAX_REQUEST_ID_CHARS}}}")
MAX_PROMPT_LOGPROB_ENTRIES = 1 << 20  # of at most 11 bytes; the chosen token, its rank, k others


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model allows. `has_text` is False for a model without a tokenizer. `max_chars_per_token`: of
    text, where that is known."""

    vocab_size: int
    max_model_len: int
    has_text: bool = True
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    max_chars_per_token: int | None = None


def check_at_a_glance(request: GenerateInput, limits: ModelLimits) -> None:
    """Refuses what can never fit before any time is spent on it."""
    if request.timeout_s is not None and math.isnan(request.timeout_s):
        raise InvalidArgument("must be a number of seconds, not NaN", field="timeout_s")
    name = prompt_field(request)
    match request.prompt:
        case str(text):
            check_text_length(len(text), limits, field=name)
        case Chat(messages):
            if len(messages) > limits.max_model_len:  # there is none that takes no token
                raise _too_long(f"{len(messages)} messages", limits, name)
        case tuple(token_ids):
            check_prompt_length(len(token_ids), limits, field=name)


def check_request(request: GenerateInput, limits: ModelLimits) -> None:
    """Refuses whatever is wrong whatever the prompt's number of tokens turns out to be."""
    check_at_a_glance(request, limits)
    _check_names(request)
    _check_prompt(request, limits)
    check_sampling(request.sampling, limits.vocab_size)
    _check_continuation(request, limits)


def resolve_sampling(
    request: GenerateInput, limits: ModelLimits, *, num_prompt_tokens: int, seed: int
) -> SamplingParams:
    """Sampling with every value set, for a request that passed `check_request`.

    `seed` is used where the request brings none; the caller draws it.
    """
    sampling, defaults = request.sampling, limits.defaults
    check_prompt_length(num_prompt_tokens, limits, field=prompt_field(request))
    _check_num_prompt_logprobs(sampling, num_prompt_tokens)
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
        top_k=_resolve_top_k(_or(sampling.top_k, defaults.top_k), limits),
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
        raise _too_long(f"{num_prompt_tokens} tokens", limits, field)


def check_text_length(num_chars: int, limits: ModelLimits, *, field: str) -> None:
    """Refuses a text that has too many tokens however it is tokenized."""
    longest = limits.max_chars_per_token
    if longest is not None and num_chars > longest * (limits.max_model_len - 1):
        raise _too_long(f"{num_chars} characters, at most {longest} in a token", limits, field)


def _too_long(size: str, limits: ModelLimits, field: str) -> ContextLengthExceeded:
    return ContextLengthExceeded(
        f"the prompt has {size}; the model's context of {limits.max_model_len} allows at most "
        f"{limits.max_model_len - 1} tokens",
        field=field,
    )


def _resolve_max_tokens(
    sampling: SamplingInput, limits: ModelLimits, num_prompt_tokens: int
) -> int:
    remaining = limits.max_model_len - num_prompt_tokens
    if sampling.max_tokens is None:
        return remaining
    if sampling.max_tokens > remaining:
        raise ContextLengthExceeded(
            f"is {sampling.max_tokens}, but the prompt's {num_prompt_tokens} tokens leave "
            f"{remaining} of the model's context of {limits.max_model_len}",
            field="sampling.max_tokens",
        )
    return sampling.max_tokens


def _resolve_top_k(top_k: int, limits: ModelLimits) -> int:
    """One that keeps the whole vocabulary is off; so no number is too large to travel."""
    return top_k if 0 < top_k < limits.vocab_size else 0


def _check_num_prompt_logprobs(sampling: SamplingInput, num_prompt_tokens: int) -> None:
    """They travel in one message between workers, which must stay below `MAX_MESSAGE_BYTES`."""
    if sampling.prompt_logprobs is None:
        return
    most = MAX_PROMPT_LOGPROB_ENTRIES // (sampling.prompt_logprobs + 2)
    if num_prompt_tokens > most:
        raise InvalidArgument(
            f"is {sampling.prompt_logprobs}, which is given for prompts of at most {most} tokens; "
            f"this one has {num_prompt_tokens}",
            field="sampling.prompt_logprobs",
        )


def _check_names(request: GenerateInput) -> None:
    """They go through all processes: into logs, traces, metrics and file names."""
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidArgument(
            f"must be 1 to {MAX_REQUEST_ID_CHARS} letters, digits and . _ : -", field="request_id"
        )
    if len(request.tenant) > MAX_TENANT_CHARS or not request.tenant.isprintable():
        raise InvalidArgument(
            f"must have at most {MAX_TENANT_CHARS} characters, all of them printable",
            field="tenant",
        )


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
            check_token_ids(token_ids, limits.vocab_size, name)
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
        check_token_ids(token_ids, limits.vocab_size, f"output_token_ids[{index}]")
    if request.sampling.prompt_logprobs is not None and any(request.output_token_ids):
        raise InvalidArgument(
            "contradicts output_token_ids: prompt log-probabilities come before the first output "
            "token, so a continuation has them already",
            field="sampling.prompt_logprobs",
        )


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
