"""A router in the process of the tests, which can be looked into, or which routes by rules of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from baton.cluster.process import free_port
from router.config import RouterConfig
from router.process import Router
from router.routing.policy import PolicySettings


@asynccontextmanager
async def router_in_this_process(
    checkpoint: Path, grpc_port: int, policy: PolicySettings
) -> AsyncIterator[Router]:
    """A whole router; workers register with it where they are told its port."""
    config = RouterConfig(
        grpc_port=grpc_port,
        http_port=free_port(),
        models=(str(checkpoint),),
        policy=policy,
        drain_grace_s=1.0,
    )
    router = Router(config)
    running = asyncio.create_task(router.run())
    try:
        yield router
    finally:
        router._stop.set()
        await running
