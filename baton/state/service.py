"""The Registry service: workers' reports into the cluster state of the router that serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from baton import convert
from baton.errors import InvalidArgument
from baton.state.base import ClusterState, Report
from baton.types import WorkerInfo
from baton.v1 import worker_pb2, worker_pb2_grpc


class RegistryServicer(worker_pb2_grpc.RegistryServicer):
    """A worker leaves by ending its call while it drains. A call that merely ends may be a cut wire
    (gRPC shows a handler both as the end of the stream), so then its lease runs out instead."""

    def __init__(self, state: ClusterState, router_id: str, routers: Sequence[str] = ()) -> None:
        """`routers`: addresses at which a worker is to register as well."""
        self._state = state
        self._router_id = router_id
        self._routers = routers

    async def Register(
        self,
        request_iterator: AsyncIterator[worker_pb2.WorkerReport],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[worker_pb2.LeaseGrant]:
        info: WorkerInfo | None = None
        draining = False
        async for message in request_iterator:
            if message.HasField("info"):
                info = convert.worker_info_from_proto(message.info)
            if info is None:
                raise InvalidArgument("is missing from the first report of the call", field="info")
            draining = message.draining
            loads = tuple(convert.pool_load_from_proto(load) for load in message.loads)
            yield worker_pb2.LeaseGrant(
                lease_s=await self._state.report(Report(info, loads, draining, message.hung)),
                router_id=self._router_id,
                echo_worker_time_s=message.worker_time_s,
                routers=self._routers,
            )
        if info is not None and draining:
            await self._state.leave(info.worker_id, info.incarnation, "drained")
