"""baton.v1.Inference and baton.v1.Admin: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc

from baton import convert
from baton.errors import InvalidArgument
from baton.rpc.context import remaining_s
from baton.state.base import ClusterState, Member
from baton.types import PositionLogprobs
from baton.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    inference_pb2,
    inference_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from router.dispatch import Dispatcher
from router.fleet import Fleet
from router.frontend import Admitted, Deltas, Finished, GenerateUpdate, PromptLogprobs, SampleDelta
from router.gate import Gate
from router.models import Models
from router.request import Chat, GenerateInput, Message, Prompt, SamplingInput
from router.request_life import RequestLife
from router.request_log import RequestLog

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService(inference_pb2_grpc.InferenceServicer):
    def __init__(self, dispatcher: Dispatcher, models: Models) -> None:
        self._dispatcher = dispatcher
        self._models = models

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        asked = _generate_input(request, remaining_s(context))
        async with aclosing(self._dispatcher.generate(asked)) as updates:
            async for update in updates:
                yield _response(update)

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        model = self._models.get(request.model)
        prompt = _prompt(request)
        if not isinstance(prompt, str | Chat):
            raise InvalidArgument("one of text or chat is needed", field="prompt")
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        token_ids = await self._dispatcher.encode(model, prompt, special=special)
        return inference_pb2.TokenizeResponse(token_ids=token_ids)

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        model = self._models.get(request.model)
        skip = not request.HasField("skip_special_tokens") or request.skip_special_tokens
        text = self._dispatcher.decode(model, request.token_ids, skip_special_tokens=skip)
        return inference_pb2.DetokenizeResponse(text=text)

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Context
    ) -> inference_pb2.ListModelsResponse:
        return inference_pb2.ListModelsResponse(
            models=[
                inference_pb2.Model(
                    name=card.name,
                    max_model_len=card.max_model_len,
                    vocab_size=card.vocab_size,
                    created_unix_s=card.created_unix_s,
                )
                for card in self._dispatcher.models()
            ]
        )


class AdminService(admin_pb2_grpc.AdminServicer):
    def __init__(self, state: ClusterState, fleet: Fleet, gate: Gate, requests: RequestLog) -> None:
        self._state = state
        self._fleet = fleet
        self._gate = gate
        self._requests = requests

    async def ListWorkers(
        self, request: admin_pb2.ListWorkersRequest, context: Context
    ) -> admin_pb2.ListWorkersResponse:
        members = self._state.snapshot()
        return admin_pb2.ListWorkersResponse(
            workers=[_worker_status(m, self._fleet.is_connected(m.info)) for m in members]
        )

    async def Drain(
        self, request: admin_pb2.DrainRequest, context: Context
    ) -> admin_pb2.DrainResponse:
        channel = self._fleet.worker_channel(request.worker_id)
        stub = worker_pb2_grpc.WorkerStub(channel)
        await stub.DrainWorker(worker_pb2.DrainWorkerRequest(grace_s=request.grace_s))
        return admin_pb2.DrainResponse()

    async def GetLoad(
        self, request: admin_pb2.GetLoadRequest, context: Context
    ) -> admin_pb2.GetLoadResponse:
        return admin_pb2.GetLoadResponse(
            num_running_requests=self._gate.num_in_flight,
            num_waiting_requests=self._gate.num_waiting,
            pools=[
                convert.pool_load_to_proto(load)
                for member in self._state.snapshot()
                for load in member.loads
            ],
        )

    async def ListRequests(
        self, request: admin_pb2.ListRequestsRequest, context: Context
    ) -> admin_pb2.ListRequestsResponse:
        lives = self._requests.newest(request.limit or 100)
        return admin_pb2.ListRequestsResponse(requests=map(_request_status, lives))


# Requests in


def _generate_input(
    request: inference_pb2.GenerateRequest, timeout_s: float | None
) -> GenerateInput:
    return GenerateInput(
        prompt=_prompt(request),
        sampling=_sampling_input(request.sampling),
        request_id=request.request_id,
        model=request.model,
        output_token_ids=tuple(tuple(sample.ids) for sample in request.output_token_ids),
        tenant=request.tenant,
        priority=request.priority,
        detokenize=not request.HasField("detokenize") or request.detokenize,
        timeout_s=timeout_s,
    )


def _prompt(request: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            return request.text
        case "chat":
            return Chat(tuple(Message(m.role, m.content) for m in request.chat.messages))
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


# Answers out


def _response(update: GenerateUpdate) -> inference_pb2.GenerateResponse:
    match update:
        case Admitted():
            return inference_pb2.GenerateResponse(
                request_id=update.request_id,
                admitted=inference_pb2.Admitted(
                    model=update.model,
                    seed=update.seed,
                    num_prompt_tokens=update.num_prompt_tokens,
                ),
            )
        case PromptLogprobs(positions):
            return inference_pb2.GenerateResponse(prompt_logprobs=_logprobs(positions))
        case Deltas(deltas):
            return inference_pb2.GenerateResponse(deltas=map(_delta, deltas))
        case Finished(usage, timeline):
            return inference_pb2.GenerateResponse(
                usage=convert.usage_to_proto(usage), timeline=convert.timeline_to_proto(timeline)
            )


def _delta(delta: SampleDelta) -> inference_pb2.SampleDelta:
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


def _worker_status(member: Member, connected: bool) -> admin_pb2.WorkerStatus:
    return admin_pb2.WorkerStatus(
        info=convert.worker_info_to_proto(member.info),
        loads=[convert.pool_load_to_proto(load) for load in member.loads],
        draining=member.draining,
        lease_remaining_s=member.lease_remaining_s,
        connected=connected,
    )


def _request_status(life: RequestLife) -> admin_pb2.RequestStatus:
    return admin_pb2.RequestStatus(
        request_id=life.request_id,
        state=life.state,
        usage=convert.usage_to_proto(life.usage()),
        timeline=convert.timeline_to_proto(life.timeline()),
    )
