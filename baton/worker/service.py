"""baton.v1.Worker: what routers and operators ask of a worker, whatever its role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import grpc

from baton import convert
from baton.errors import IntegrityError, NotFound, Unavailable
from baton.types import PoolId, PoolLoad, WorkerInfo
from baton.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from baton.worker.kv_events import KvEventLog, Subscriber

Answer = TypeVar("Answer")
Context = grpc.aio.ServicerContext[Any, Any]


class Hosted(Protocol):
    """The Host as this service sees it; `load`, `check_integrity` and `kv_events` belong to the
    engine's thread and are reached through `ask`."""

    @property
    def info(self) -> WorkerInfo: ...
    @property
    def pool_id(self) -> PoolId: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def kv_events(self) -> KvEventLog: ...
    def ask(self, question: Callable[[], Answer]) -> Awaitable[Answer]: ...
    def load(self) -> PoolLoad: ...
    def check_integrity(self) -> None: ...
    def drain(self, grace_s: float) -> None: ...


class WorkerService(worker_pb2_grpc.WorkerServicer):
    def __init__(self, host: Hosted, default_grace_s: float) -> None:
        self._host = host
        self._default_grace_s = default_grace_s

    async def GetInfo(
        self, request: worker_pb2.GetInfoRequest, context: Context
    ) -> common_pb2.WorkerInfo:
        return convert.worker_info_to_proto(self._host.info)

    async def GetWorkerLoad(
        self, request: worker_pb2.GetWorkerLoadRequest, context: Context
    ) -> worker_pb2.GetWorkerLoadResponse:
        load = await self._host.ask(self._host.load)
        return worker_pb2.GetWorkerLoadResponse(pools=[convert.pool_load_to_proto(load)])

    async def DrainWorker(
        self, request: worker_pb2.DrainWorkerRequest, context: Context
    ) -> worker_pb2.DrainWorkerResponse:
        self._host.drain(request.grace_s or self._default_grace_s)
        return worker_pb2.DrainWorkerResponse()

    async def StreamKvEvents(
        self, request: worker_pb2.StreamKvEventsRequest, context: Context
    ) -> AsyncIterator[worker_pb2.KvEventBatch]:
        pool = convert.pool_from_proto(request.pool)
        if pool != self._host.pool_id:
            raise NotFound(f"{pool} is not a pool of {self._host.pool_id}", field="pool")
        subscriber = Subscriber()
        events = self._host.kv_events
        try:
            await self._host.ask(lambda: events.subscribe(subscriber))
            async for batch in subscriber:
                yield worker_pb2.KvEventBatch(
                    pool=request.pool,
                    incarnation=self._host.incarnation,
                    first_number=batch.first_number,
                    count=batch.count,
                    snapshot=batch.snapshot,
                    records=batch.records,
                )
        finally:
            with suppress(Unavailable):  # the engine has stopped, and its subscribers with it
                # Nobody can take this question back: the queue would fill up for ever.
                await asyncio.shield(self._host.ask(lambda: events.unsubscribe(subscriber)))

    async def CheckIntegrity(
        self, request: worker_pb2.CheckIntegrityRequest, context: Context
    ) -> worker_pb2.CheckIntegrityResponse:
        load, violations = await self._host.ask(self._check)
        return worker_pb2.CheckIntegrityResponse(
            pools=[convert.pool_load_to_proto(load)], violations=violations
        )

    def _check(self) -> tuple[PoolLoad, list[str]]:
        try:
            self._host.check_integrity()
        except IntegrityError as error:
            return self._host.load(), [str(error)]
        return self._host.load(), []
