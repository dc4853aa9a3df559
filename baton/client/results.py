"""What calls to Baton return, as frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton import convert
from baton.types import FinishReason, PoolId, PoolLoad, PositionLogprobs, Timeline, Usage
from baton.v1 import admin_pb2, inference_pb2


@dataclass(frozen=True, slots=True)
class Delta:
    """What one sample gained. `logprobs`: one per token of `token_ids`, where they were asked for.

    `text` may lag behind `token_ids`: characters split over tokens and the possible start of a stop
    string are held back, and come with a later delta of the same sample. `finish_reason` is None
    while the sample goes on. Where it is STOP, either `stop` is the stop string that matched, or
    `stop_token_id` the token that ended the sample.
    """

    sample_index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PositionLogprobs, ...]
    finish_reason: FinishReason | None
    stop: str | None
    stop_token_id: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the n answers to a prompt. Text and tokens are those made by this call: of a
    continuation, what follows the tokens that it was given."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[PositionLogprobs, ...] = ()
    stop: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished request. `text`, `token_ids` and so on are those of the first sample. With `seed`
    and `model` the same request gives the same samples again. `prompt_logprobs`: one per prompt
    token after the first, where they were asked for."""

    request_id: str
    model: str
    seed: int
    samples: tuple[Sample, ...]
    usage: Usage
    timeline: Timeline
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()

    @property
    def text(self) -> str:
        return self.samples[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.samples[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.samples[0].finish_reason

    @property
    def logprobs(self) -> tuple[PositionLogprobs, ...]:
        return self.samples[0].logprobs


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    max_model_len: int
    vocab_size: int
    created_unix_s: int


@dataclass(frozen=True, slots=True)
class Load:
    """The router's requests, and the momentary load of every pool of every worker. Tokens are counted since
    the router started."""

    num_running_requests: int
    num_waiting_requests: int
    pools: tuple[PoolLoad, ...]
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """`state`: "running", or why the request ended."""

    request_id: str
    state: str
    usage: Usage
    timeline: Timeline


def delta_from_proto(message: inference_pb2.SampleDelta) -> Delta:
    reason = convert.finish_reason_from_proto(message.finish_reason)
    stopped = reason is FinishReason.STOP
    return Delta(
        sample_index=message.sample_index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(map(convert.logprobs_from_proto, message.logprobs)),
        finish_reason=reason,
        stop=message.stop if stopped and message.stop else None,
        stop_token_id=message.stop_token_id if stopped and not message.stop else None,
    )


def load_from_proto(message: admin_pb2.GetLoadResponse) -> Load:
    return Load(
        num_running_requests=message.num_running_requests,
        num_waiting_requests=message.num_waiting_requests,
        pools=tuple(map(convert.pool_load_from_proto, message.pools)),
        num_prompt_tokens=message.num_prompt_tokens,
        num_output_tokens=message.num_output_tokens,
    )


def request_status_from_proto(message: admin_pb2.RequestStatus) -> RequestStatus:
    return RequestStatus(
        request_id=message.request_id,
        state=message.state,
        usage=convert.usage_from_proto(message.usage),
        timeline=convert.timeline_from_proto(message.timeline),
    )


def model_from_proto(message: inference_pb2.Model) -> Model:
    return Model(
        name=message.name,
        max_model_len=message.max_model_len,
        vocab_size=message.vocab_size,
        created_unix_s=message.created_unix_s,
    )


@dataclass(frozen=True, slots=True)
class RouteWay:
    """One way to compute a prompt, in seconds: the parts of its predicted time to first token, and what it
    costs others."""

    wait_s: float
    compute_s: float
    transfer_s: float
    others_s: float

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.compute_s + self.transfer_s


@dataclass(frozen=True, slots=True)
class RouteOption:
    """A pair of pools; `prefill` None where the decode pool computes the prompt itself. `remote`: None
    where no prefill worker is up. `lends`: the prefill pool takes what the decode pool has of the prompt.
    `num_streams`: requests that all routers have in flight on the decode pool; `step_s`: a decode step's
    predicted time with this one beside them, 0 until measured."""

    decode: PoolId
    prefill: PoolId | None
    num_missing_tokens: int
    local: RouteWay
    remote: RouteWay | None
    lends: bool
    num_streams: int
    step_s: float


@dataclass(frozen=True, slots=True)
class Route:
    """Which pair a prompt would get, and the candidates it would be chosen from, best first."""

    num_prompt_tokens: int
    chosen: RouteOption
    by_decode: Sequence[RouteOption]
    by_prefill: Sequence[RouteOption]


def route_from_proto(message: admin_pb2.ExplainRouteResponse) -> Route:
    return Route(
        message.num_prompt_tokens,
        _route_option(message.chosen),
        [_route_option(option) for option in message.by_decode],
        [_route_option(option) for option in message.by_prefill],
    )


def _route_option(message: admin_pb2.RouteOption) -> RouteOption:
    return RouteOption(
        convert.pool_from_proto(message.decode),
        convert.pool_from_proto(message.prefill) if message.HasField("prefill") else None,
        message.num_missing_tokens,
        _route_way(message.local),
        _route_way(message.remote) if message.HasField("remote") else None,
        message.lends,
        message.num_streams,
        message.step_s,
    )


def _route_way(message: admin_pb2.RouteWay) -> RouteWay:
    return RouteWay(message.wait_s, message.compute_s, message.transfer_s, message.others_s)
