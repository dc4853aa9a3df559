"""Between the messages of baton.v1.Inference and the values of the front door, both ways."""

from __future__ import annotations

from collections.abc import Sequence

from baton import convert
from baton.types import PositionLogprobs
from baton.v1 import common_pb2, inference_pb2
from router.frontend import Admitted, Deltas, Finished, GenerateUpdate, PromptLogprobs, SampleDelta
from router.request import Chat, GenerateInput, Message, Prompt, SamplingInput


def generate_input(
    request: inference_pb2.GenerateRequest, timeout_s: float | None, traceparent: str = ""
) -> GenerateInput:
    return GenerateInput(
        prompt=prompt(request),
        sampling=_sampling_input(request.sampling),
        request_id=request.request_id,
        model=request.model,
        output_token_ids=tuple(tuple(sample.ids) for sample in request.output_token_ids),
        tenant=request.tenant,
        priority=request.priority,
        detokenize=not request.HasField("detokenize") or request.detokenize,
        timeout_s=timeout_s,
        traceparent=traceparent,
        weights=request.weights,
    )


def prompt(request: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            return request.text
        case "chat":
            return Chat(tuple(Message(m.role, m.content, m.name) for m in request.chat.messages))
        case "token_ids":
            assert isinstance(request, inference_pb2.GenerateRequest)
            return tuple(request.token_ids.ids)
        case _:
            return None


_OPTIONAL = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "logprobs",
    "prompt_logprobs",
    "n",
)


def _sampling_input(message: common_pb2.SamplingParams) -> SamplingInput:
    given = {field.name for field, _ in message.ListFields()}
    optional = {name: getattr(message, name) for name in _OPTIONAL if name in given}
    return SamplingInput(
        min_tokens=message.min_tokens,
        min_p=message.min_p,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        logit_bias=dict(message.logit_bias),
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        **optional,
    )


def response(update: GenerateUpdate) -> inference_pb2.GenerateResponse:
    match update:
        case Deltas():
            return inference_pb2.GenerateResponse(deltas=[_delta(each) for each in update.deltas])
        case Admitted():
            return inference_pb2.GenerateResponse(
                request_id=update.request_id,
                admitted=inference_pb2.Admitted(
                    model=update.model,
                    seed=update.seed,
                    num_prompt_tokens=update.num_prompt_tokens,
                    weights=update.weights,
                ),
            )
        case PromptLogprobs(positions):
            return inference_pb2.GenerateResponse(prompt_logprobs=_logprobs(positions))
        case Finished(usage, timeline):
            return inference_pb2.GenerateResponse(
                usage=convert.usage_to_proto(usage), timeline=convert.timeline_to_proto(timeline)
            )


def _delta(delta: SampleDelta) -> inference_pb2.SampleDelta:
    if delta.finish_reason is None and not delta.logprobs:  # nearly all: nothing but its tokens
        return inference_pb2.SampleDelta(
            sample_index=delta.sample_index, text=delta.text, token_ids=delta.token_ids
        )
    return inference_pb2.SampleDelta(
        sample_index=delta.sample_index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=_logprobs(delta.logprobs),
        finish_reason=convert.finish_reason_to_proto(delta.finish_reason),
        stop=delta.stop or "",
        stop_token_id=delta.stop_token_id or 0,
    )


def _logprobs(positions: Sequence[PositionLogprobs]) -> list[common_pb2.PositionLogprobs]:
    return [convert.logprobs_to_proto(position) for position in positions]
