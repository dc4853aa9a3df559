"""A worker's lease in Redis: written by the worker itself, or by a router that it registered with."""

from __future__ import annotations

import time

from baton.config import Times
from baton.state import records
from baton.state.base import Report
from baton.state.redis_store import RedisStore


async def renew(store: RedisStore, report: Report, times: Times) -> float:
    """For how many seconds. InvalidArgument where a younger incarnation holds the lease."""
    info = report.info
    value = records.pack_worker(report, beat=time.time_ns())
    await store.write("worker", info.worker_id, info.incarnation, value, times.worker_lease_s)
    return times.worker_lease_s


async def leave(store: RedisStore, worker_id: str, times: Times) -> None:
    """After a report that drains, which every router has time to read."""
    await store.end("worker", worker_id, within_s=2 * times.report_interval_s)
