"""What routers and workers say of themselves over gRPC: health, who is registered, and drain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from baton import AsyncClient
from baton.errors import BatonError
from baton.rpc.channel import channel
from baton.rpc.server import LIVENESS
from baton.rpc.status import from_rpc_error
from baton.state.base import Member
from baton.v1 import worker_pb2, worker_pb2_grpc

_ANSWER_S = 2.0


def _check(link: grpc.aio.Channel) -> Any:
    """The health service's method; its stub has no types."""
    return link.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


async def serves(address: str) -> bool:
    """Whether the server at host:port says, in good time, that it can serve."""
    return await _is_well(address, "")


async def lives(address: str) -> bool:
    """Whether it says, in good time, that it makes progress, even where it takes nothing new."""
    return await _is_well(address, LIVENESS)


async def _is_well(address: str, service: str) -> bool:
    request = health_pb2.HealthCheckRequest(service=service)
    async with channel(address) as link:
        try:
            answer = await _check(link)(request, timeout=_ANSWER_S)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def drain_worker(address: str, grace_s: float) -> None:
    """Raises a BatonError where the worker does not take it."""
    request = worker_pb2.DrainWorkerRequest(grace_s=grace_s)
    async with channel(address) as link:
        try:
            await worker_pb2_grpc.WorkerStub(link).DrainWorker(request, timeout=_ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


async def members(router: str) -> Sequence[Member] | None:
    """The workers registered at this router; None where it does not answer."""
    async with AsyncClient(router, timeout_s=_ANSWER_S) as client:
        try:
            return await client.workers()
        except BatonError:
            return None


async def find_worker(routers: Sequence[str], worker_id: str, pid: int) -> Member | None:
    """This very process as the routers know it."""
    for known in await asyncio.gather(*map(members, routers)):
        for member in known or ():
            if (member.info.worker_id, member.info.pid) == (worker_id, pid):
                return member
    return None
