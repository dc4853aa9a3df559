"""What is written to a shared store: msgpack maps, by the names of the fields.

A reader passes over fields that it does not know, so that replicas of two versions can share a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

import msgpack

from baton.state.base import InFlight, Report, RouterReport
from baton.types import Fingerprint, PoolId, PoolLoad, Role, WorkerInfo

Value = TypeVar("Value")


def pack_worker(report: Report, beat: int) -> bytes:
    """`beat` differs from every earlier report's, whoever wrote it: a reader renews a lease when it
    has seen a new one. `incarnation` stands outside for the store's own script."""
    return _packed(
        {
            "incarnation": report.info.incarnation,
            "beat": beat,
            "info": asdict(report.info),
            "loads": [asdict(load) for load in report.loads],
            "draining": report.draining,
        }
    )


def unpack_worker(data: bytes) -> tuple[Report, int]:
    """The report and its beat. Raises ValueError where the bytes are no such record."""
    record = _unpacked(data)
    try:
        report = Report(
            _info(record["info"]),
            tuple(map(_load, record["loads"])),
            bool(record["draining"]),
        )
        return report, int(record["beat"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"no worker's record: {error}") from error


def pack_router(report: RouterReport) -> bytes:
    in_flight = [
        [pool.worker_id, pool.dp_rank, work.num_requests, work.num_queued_tokens]
        for pool, work in report.in_flight.items()
    ]
    return _packed(
        {
            "incarnation": 0,  # routers have none
            "router_id": report.router_id,
            "in_flight": in_flight,
            "spent_tokens": dict(report.spent_tokens),
        }
    )


def unpack_router(data: bytes) -> RouterReport:
    """Raises ValueError where the bytes are no such record."""
    record = _unpacked(data)
    try:
        in_flight = {
            PoolId(worker_id, dp_rank): InFlight(num_requests, num_queued_tokens)
            for worker_id, dp_rank, num_requests, num_queued_tokens in record["in_flight"]
        }
        return RouterReport(str(record["router_id"]), in_flight, dict(record["spent_tokens"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no router's record: {error}") from error


def _info(record: Mapping[str, Any]) -> WorkerInfo:
    known = _known(WorkerInfo, record)
    known["role"] = Role(known["role"])
    known["fingerprint"] = Fingerprint(**_known(Fingerprint, known["fingerprint"]))
    known["transports"] = tuple(known["transports"])
    return WorkerInfo(**known)


def _load(record: Mapping[str, Any]) -> PoolLoad:
    known = _known(PoolLoad, record)
    known["pool"] = PoolId(**_known(PoolId, known["pool"]))
    return PoolLoad(**known)


def _known(cls: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    return {each.name: record[each.name] for each in fields(cls) if each.name in record}


def _packed(record: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(record)
    return packed


def _unpacked(data: bytes) -> Mapping[str, Any]:
    try:
        record = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise ValueError(f"no msgpack: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("no map")
    return record
