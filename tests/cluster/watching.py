"""Looks at a cluster as an operator would: its load, its accounts of blocks, its processes.

Everything waits with a bound and looks again; nothing sleeps for a time that is hoped to be enough.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from baton import AsyncClient
from baton.client.results import Load
from baton.cluster.local import LocalCluster
from baton.convert import pool_load_from_proto
from baton.errors import Unavailable
from baton.rpc.channel import channel
from baton.types import PoolLoad
from baton.v1 import worker_pb2, worker_pb2_grpc

Seen = TypeVar("Seen")

WITHIN_S = 30.0  # against hanging: what is waited for takes a fraction of it
_POLL_S = 0.01


@contextmanager
def explained(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """Where something fails, what the cluster's processes said is shown beside it."""
    try:
        yield cluster
    except BaseException:
        print(cluster.logs())
        raise


async def eventually(look: Callable[[], Awaitable[Seen]], holds: Callable[[Seen], bool]) -> Seen:
    """What `look` sees once it `holds`; fails with the last that was seen."""
    give_up_s = time.monotonic() + WITHIN_S
    while True:
        seen = await look()
        if holds(seen):
            return seen
        assert time.monotonic() < give_up_s, f"still {seen}"
        await asyncio.sleep(_POLL_S)


async def integrity(worker_address: str) -> PoolLoad:
    """The load of a worker's one pool, of which every block is accounted for."""
    async with channel(worker_address) as link:
        stub = worker_pb2_grpc.WorkerStub(link)
        answer = await stub.CheckIntegrity(worker_pb2.CheckIntegrityRequest(), timeout=WITHIN_S)
    assert list(answer.violations) == []
    [pool] = map(pool_load_from_proto, answer.pools)
    counts = (pool.num_free_blocks, pool.num_held_blocks, pool.num_cached_blocks)
    assert sum(counts) + pool.num_quarantined_blocks == pool.num_total_blocks
    return pool


async def num_registered(client: AsyncClient) -> int:
    """How many workers a router has; none while it is not up."""
    try:
        async with asyncio.timeout(1.0):
            return len(await client.workers())
    except (Unavailable, TimeoutError):
        return 0


async def router_load(address: str) -> Load:
    async with AsyncClient(address) as client:
        return await client.load()


async def accounts(address: str) -> tuple[Load, list[PoolLoad]]:
    """The router's load, and that of every worker as the worker itself tells it now."""
    async with AsyncClient(address) as client:
        workers = await client.workers()
        return await client.load(), [await integrity(worker.info.address) for worker in workers]


def is_idle(seen: tuple[Load, list[PoolLoad]]) -> bool:
    """Nothing runs or waits anywhere, and no block is held."""
    load, pools = seen
    at_router = load.num_running_requests + load.num_waiting_requests
    at_workers = sum(
        pool.num_running_requests
        + pool.num_waiting_requests
        + pool.num_held_blocks
        + pool.num_quarantined_blocks
        for pool in pools
    )
    return at_router + at_workers == 0


async def settled(address: str) -> list[PoolLoad]:
    """Waits until the cluster is idle; every account is checked on the way."""
    _, pools = await eventually(lambda: accounts(address), is_idle)
    return pools


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that were told to keep their temporary files in `folder`, but for
    multiprocessing's own servants of this process, which end with it."""
    marker = f"TMPDIR={folder}\0".encode()
    servant = re.compile(rf"PPid:\t{os.getpid()}\n")
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker not in (process / "environ").read_bytes() + b"\0":
                continue
            command = (process / "cmdline").read_text().replace("\0", " ")
            is_servant = "multiprocessing" in command and servant.search(
                (process / "status").read_text()
            )
        except OSError:  # it has just ended, or is somebody else's
            continue
        if not is_servant:
            found.append(command)
    return found
