"""What both completion endpoints have in common on the way in."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from baton.errors import InvalidArgument
from baton.rpc.context import traceparent
from baton.sampling_ranges import check_ranges
from router.http.fields import Fields, as_string
from router.http.request_id import usable_request_id
from router.request import GenerateInput, Prompt, SamplingInput

TENANT_HEADER = "x-baton-tenant"


@dataclass(frozen=True, slots=True)
class Caller:
    """What headers say."""

    request_id: str
    tenant: str
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request: one generation per prompt, each with n samples, and how to answer.

    Choice `prompt index * n + sample index` of the answer is that sample.
    """

    inputs: tuple[GenerateInput, ...]
    request_id: str
    n: int
    stream: bool
    include_usage: bool
    return_token_ids: bool

    @property
    def has_logprobs(self) -> bool:
        return self.inputs[0].sampling.logprobs is not None


def read_caller(request: Request) -> Caller:
    return Caller(
        usable_request_id(request.state.request_id),  # of RequestIdMiddleware
        request.headers.get(TENANT_HEADER, ""),
        traceparent(request.headers),
    )


def read_call(
    fields: Fields, caller: Caller, prompts: list[Prompt], sampling: SamplingInput
) -> Call:
    """The fields beside prompt and sampling, whose ranges are checked before anything is made n times."""
    check_ranges(sampling)
    stream = fields.boolean("stream")
    options = fields.object("stream_options")
    if options is not None and not stream:
        raise InvalidArgument("is only allowed where stream is true", field="stream_options")
    if stream and sampling.prompt_logprobs is not None:
        raise InvalidArgument("is not available in a stream", field="prompt_logprobs")
    model = fields.string("model") or ""
    priority = fields.integer("priority") or 0
    if not -(2**31) <= priority < 2**31:
        raise InvalidArgument("must be a 32-bit integer", field="priority")
    inputs = tuple(
        GenerateInput(
            prompt=prompt,
            sampling=sampling,
            request_id=caller.request_id if len(prompts) == 1 else f"{caller.request_id}-{index}",
            model=model,
            tenant=caller.tenant,
            priority=priority,
            traceparent=caller.traceparent,
        )
        for index, prompt in enumerate(prompts)
    )
    return Call(
        inputs=inputs,
        request_id=caller.request_id,
        n=1 if sampling.n is None else sampling.n,
        stream=stream,
        include_usage=options is not None and options.boolean("include_usage"),
        return_token_ids=fields.boolean("return_token_ids"),
    )


def read_sampling(fields: Fields, *, max_tokens: int | None, logprobs: int | None) -> SamplingInput:
    """OpenAI's names, and beside them those that vLLM's users know."""
    return SamplingInput(
        max_tokens=max_tokens,
        min_tokens=fields.integer("min_tokens"),
        temperature=fields.number("temperature"),
        top_k=fields.integer("top_k"),
        top_p=fields.number("top_p"),
        min_p=fields.number("min_p"),
        repetition_penalty=fields.number("repetition_penalty"),
        frequency_penalty=fields.number("frequency_penalty"),
        presence_penalty=fields.number("presence_penalty"),
        seed=_read_seed(fields),
        logit_bias=fields.numbers_by_integer("logit_bias"),
        stop=_read_stop(fields),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=fields.boolean("ignore_eos"),
        logprobs=logprobs,
        prompt_logprobs=fields.integer("prompt_logprobs"),
        n=fields.integer("n"),
    )


def _read_seed(fields: Fields) -> int | None:
    """OpenAI's seed is a signed 64-bit integer, Baton's an unsigned one: negative ones wrap."""
    seed = fields.integer("seed")
    return seed + 2**64 if seed is not None and -(2**63) <= seed < 0 else seed


def _read_stop(fields: Fields) -> tuple[str, ...]:
    value = fields.any("stop")
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise InvalidArgument("must be a string or an array of strings", field="stop")
    return tuple(as_string(stop, f"stop[{index}]") for index, stop in enumerate(value))
