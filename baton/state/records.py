"""What is written to a shared store: msgpack maps, by the names of the fields.

A reader passes over fields that it does not know, so that replicas of two versions can share a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack

from baton.state.base import InFlight, Report, RouterReport
from baton.types import PoolId, PoolLoad, WorkerInfo


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
            _made(WorkerInfo, record["info"]),
            tuple(_made(PoolLoad, load) for load in record["loads"]),
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


def _made(kind: Any, value: Any) -> Any:
    """A value of a field's type from what `asdict` and msgpack made of it."""
    if value is None:
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # with None, which has been dealt with
        return _made(next(each for each in arguments if each is not NoneType), value)
    if origin is tuple:
        return tuple(_made(arguments[0], each) for each in value)
    if kind is PoolId:  # a named tuple, hence a list
        return PoolId(*value[: len(PoolId._fields)])
    if fields := _fields(kind):
        return kind(**{
            name: _made(hint, value[name]) for name, hint in fields.items() if name in value
        })  # fmt: skip
    return kind(value) if issubclass(kind, Enum) else value


@cache
def _fields(kind: Any) -> dict[str, Any]:
    """Of a dataclass, its fields' types by name."""
    return get_type_hints(kind) if is_dataclass(kind) else {}


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
