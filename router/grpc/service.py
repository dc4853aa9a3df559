"""baton.v1.Inference and baton.v1.Admin: convert, call, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from baton import convert
from baton.errors import InvalidArgument
from baton.rpc.context import remaining_s, traceparent
from baton.state.base import ClusterState, Member
from baton.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from router.dispatch import Dispatcher
from router.gate import Gate
from router.grpc.explain import explanation_to_proto
from router.grpc.request_reader import RequestReader
from router.grpc.session import Counted, Session
from router.grpc.wire import response
from router.intake import Intake
from router.request import Chat, GenerateInput
from router.request_life import RequestAccount
from router.telemetry.request_log import RequestLog
from router.workers.fleet import Fleet

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """`counted`: entered for every request of a session while it lasts, as calls are by the server."""

    def __init__(
        self, dispatcher: Dispatcher, intake: Intake, reader: RequestReader, counted: Counted
    ) -> None:
        self._dispatcher = dispatcher
        self._reader = reader
        self._intake = intake
        self._counted = counted

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        trace = traceparent(dict(context.invocation_metadata() or ()))
        asked = await self._reader.read(request, remaining_s(context), trace)
        async with aclosing(self._dispatcher.generate(asked)) as updates:
            async for update in updates:
                yield response(update)

    async def Session(
        self, request_iterator: AsyncIterator[inference_pb2.SessionRequest], context: Context
    ) -> AsyncIterator[inference_pb2.SessionResponse]:
        session = Session(self._dispatcher, self._reader, self._counted)
        async with aclosing(session.serve(request_iterator)) as responses:
            async for each in responses:
                yield each

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        asked = await self._reader.read_prompt(request)
        if not isinstance(asked, str | Chat):
            raise InvalidArgument("one of text or chat is needed", field="prompt")
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        token_ids = await self._intake.tokenize(request.model, asked, special=special)
        return inference_pb2.TokenizeResponse(token_ids=token_ids)

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        skip = not request.HasField("skip_special_tokens") or request.skip_special_tokens
        text = await self._intake.detokenize(
            request.model, request.token_ids, skip_special_tokens=skip
        )
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
    def __init__(
        self,
        state: ClusterState,
        fleet: Fleet,
        dispatcher: Dispatcher,
        gate: Gate,
        requests: RequestLog,
    ) -> None:
        self._state = state
        self._fleet = fleet
        self._dispatcher = dispatcher
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
        num_prompt_tokens, num_output_tokens = self._requests.num_tokens()
        return admin_pb2.GetLoadResponse(
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=num_output_tokens,
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
        accounts = self._requests.newest(request.limit or 100)
        return admin_pb2.ListRequestsResponse(requests=map(_request_status, accounts))

    async def ExplainRoute(
        self, request: admin_pb2.ExplainRouteRequest, context: Context
    ) -> admin_pb2.ExplainRouteResponse:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise InvalidArgument("one of text or token_ids is needed", field="prompt")
        asked = request.text if kind == "text" else tuple(request.token_ids.ids)
        routed = GenerateInput(prompt=asked, model=request.model, tenant=request.tenant)
        num_tokens, explanation = await self._dispatcher.explain(routed)
        return explanation_to_proto(num_tokens, explanation)


def _worker_status(member: Member, connected: bool) -> admin_pb2.WorkerStatus:
    return admin_pb2.WorkerStatus(
        info=convert.worker_info_to_proto(member.info),
        loads=[convert.pool_load_to_proto(load) for load in member.loads],
        draining=member.draining,
        lease_remaining_s=member.lease_remaining_s,
        connected=connected,
        hung=member.hung,
    )


def _request_status(account: RequestAccount) -> admin_pb2.RequestStatus:
    return admin_pb2.RequestStatus(
        request_id=account.request_id,
        state=account.state,
        usage=convert.usage_to_proto(account.usage),
        timeline=convert.timeline_to_proto(account.timeline),
    )
