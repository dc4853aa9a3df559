"""The two kinds of registry that a worker tells how it lives: a router, and Redis."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import grpc

from baton import convert
from baton.config import Times
from baton.rpc.channel import channel
from baton.rpc.status import from_rpc_error
from baton.state.base import Report
from baton.state.choose import is_redis
from baton.state.registration import Grant, Registry
from baton.types import WorkerInfo
from baton.v1 import worker_pb2, worker_pb2_grpc


def registries(routers: tuple[str, ...], state: str, times: Times) -> list[Registry]:
    """Redis where `state` names it: every router reads it, and the worker need know none of them."""
    if is_redis(state):
        return [RedisRegistry(state, times)]
    return [RouterRegistry(address) for address in routers]


@dataclass(frozen=True, slots=True)
class RouterRegistry:
    """A router that keeps its own state; one call for as long as both live. `name`: host:port. A port that
    several processes share is answered by any one of them, which names the others."""

    name: str

    async def register(self, reports: AsyncIterator[Report]) -> AsyncGenerator[Grant]:
        try:
            async with channel(self.name) as link:
                async for grant in worker_pb2_grpc.RegistryStub(link).Register(_messages(reports)):
                    others = [RouterRegistry(self._resolved(each)) for each in grant.routers]
                    yield Grant(grant.lease_s, others)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    def _resolved(self, address: str) -> str:
        """ ":port" is one of the same host."""
        return f"{self.name.rpartition(':')[0]}{address}" if address.startswith(":") else address


async def _messages(reports: AsyncIterator[Report]) -> AsyncIterator[worker_pb2.WorkerReport]:
    """What the router knows already stays out."""
    known: WorkerInfo | None = None
    async for report in reports:
        message = worker_pb2.WorkerReport(
            loads=[convert.pool_load_to_proto(load) for load in report.loads],
            draining=report.draining,
            hung=report.hung,
            worker_time_s=time.monotonic(),
        )
        if report.info != known:
            message.info.CopyFrom(convert.worker_info_to_proto(report.info))
            known = report.info
        yield message


@dataclass(frozen=True, slots=True)
class RedisRegistry:
    """A Redis, where this worker writes its own lease."""

    url: str
    times: Times

    @property
    def name(self) -> str:
        """Without what the URL may say of users and passwords."""
        return f"Redis {self.url.rpartition('@')[2].rpartition('//')[2]}"

    async def register(self, reports: AsyncIterator[Report]) -> AsyncGenerator[Grant]:
        # Imported here: it takes 200 ms that a worker of an embedded state has no use for.
        from baton.state import redis_leases
        from baton.state.redis_store import RedisStore

        async with RedisStore(self.url) as store:
            last: Report | None = None
            async for last in reports:
                yield Grant(await redis_leases.renew(store, last, self.times))
            if last is not None:
                await redis_leases.leave(store, last.info.worker_id, self.times)
