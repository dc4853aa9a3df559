"""The SDK on asyncio: `AsyncClient`. Every method raises the typed errors of baton.errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, Unpack

from baton import convert
from baton.client import request, results
from baton.client.collect import collect
from baton.client.replicas import Replicas
from baton.client.request import GenerateOptions, Prompt
from baton.client.stream import AsyncStream
from baton.errors import InvalidArgument
from baton.state.base import Member
from baton.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc

_UNARY_TIMEOUT_S = 30.0  # for the calls that do not generate


class AsyncClient:
    """A client of one Baton cluster. `addresses`: host:port of its routers, in order of preference.

    A lost router is noticed and the request goes on at the next, also in the middle of a stream
    (see baton.client.stream). `timeout_s`: the deadline of every generation that sets none of its
    own.
    """

    def __init__(
        self, addresses: str | Sequence[str] = "127.0.0.1:50051", *, timeout_s: float | None = None
    ) -> None:
        self._replicas = Replicas(addresses)
        self._timeout_s = timeout_s

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncStream:
        """Starts with the first iteration. Use as `async with client.stream(...) as stream: async
        for delta in stream`, so that leaving early cancels the request."""
        return AsyncStream(
            self._replicas,
            request.build(prompt, options),
            timeout_s=options.get("timeout_s", self._timeout_s),
            traceparent=options.get("traceparent", ""),
        )

    async def generate(
        self, prompt: Prompt, **options: Unpack[GenerateOptions]
    ) -> results.Generation:
        async with self.stream(prompt, **options) as stream:
            return await collect(stream)

    async def tokenize(
        self, prompt: Prompt, *, model: str = "", add_special_tokens: bool | None = None
    ) -> list[int]:
        """The token ids of a text, or of a conversation under the model's chat template."""
        message = inference_pb2.TokenizeRequest(model=model, add_special_tokens=add_special_tokens)
        if isinstance(prompt, str):
            message.text = prompt
        elif request.is_chat(prompt):
            message.chat.CopyFrom(request.chat(prompt))
        else:
            raise InvalidArgument("must be text or messages", field="prompt")
        answer = await self._replicas.call(
            lambda channel: inference_pb2_grpc.InferenceStub(channel).Tokenize(
                message, timeout=_UNARY_TIMEOUT_S
            )
        )
        return list(answer.token_ids)

    async def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", skip_special_tokens: bool | None = None
    ) -> str:
        message = inference_pb2.DetokenizeRequest(
            model=model, token_ids=token_ids, skip_special_tokens=skip_special_tokens
        )
        answer = await self._replicas.call(
            lambda channel: inference_pb2_grpc.InferenceStub(channel).Detokenize(
                message, timeout=_UNARY_TIMEOUT_S
            )
        )
        return answer.text

    async def models(self) -> list[results.Model]:
        answer = await self._replicas.call(
            lambda channel: inference_pb2_grpc.InferenceStub(channel).ListModels(
                inference_pb2.ListModelsRequest(), timeout=_UNARY_TIMEOUT_S
            )
        )
        return [results.model_from_proto(model) for model in answer.models]

    async def workers(self) -> list[Member]:
        answer = await self._replicas.call(
            lambda channel: admin_pb2_grpc.AdminStub(channel).ListWorkers(
                admin_pb2.ListWorkersRequest(), timeout=_UNARY_TIMEOUT_S
            )
        )
        return [
            Member(
                info=convert.worker_info_from_proto(worker.info),
                loads=tuple(map(convert.pool_load_from_proto, worker.loads)),
                draining=worker.draining,
                hung=worker.hung,
                lease_remaining_s=worker.lease_remaining_s,
                connected=worker.connected,
            )
            for worker in answer.workers
        ]

    async def load(self) -> results.Load:
        answer = await self._replicas.call(
            lambda channel: admin_pb2_grpc.AdminStub(channel).GetLoad(
                admin_pb2.GetLoadRequest(), timeout=_UNARY_TIMEOUT_S
            )
        )
        return results.load_from_proto(answer)

    async def drain(self, worker_id: str, *, grace_s: float = 0.0) -> None:
        """Tells a worker to leave: no new requests, `grace_s` (0: its own default) for those that
        run."""
        await self._replicas.call(
            lambda channel: admin_pb2_grpc.AdminStub(channel).Drain(
                admin_pb2.DrainRequest(worker_id=worker_id, grace_s=grace_s),
                timeout=_UNARY_TIMEOUT_S,
            )
        )

    async def requests(self, limit: int = 0) -> list[results.RequestStatus]:
        """The requests in flight and the last that finished, newest first; `limit` 0 is the
        router's."""
        answer = await self._replicas.call(
            lambda channel: admin_pb2_grpc.AdminStub(channel).ListRequests(
                admin_pb2.ListRequestsRequest(limit=limit), timeout=_UNARY_TIMEOUT_S
            )
        )
        return [results.request_status_from_proto(each) for each in answer.requests]

    async def route(
        self, prompt: str | Sequence[int], *, model: str = "", tenant: str = ""
    ) -> results.Route:
        """Which workers `prompt` would get now, and why. Starts nothing."""
        message = admin_pb2.ExplainRouteRequest(model=model, tenant=tenant)
        if isinstance(prompt, str):
            message.text = prompt
        else:
            message.token_ids.ids.extend(prompt)
        answer = await self._replicas.call(
            lambda channel: admin_pb2_grpc.AdminStub(channel).ExplainRoute(
                message, timeout=_UNARY_TIMEOUT_S
            )
        )
        return results.route_from_proto(answer)

    async def close(self) -> None:
        await self._replicas.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
