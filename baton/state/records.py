"""What is written to a shared store: msgpack maps, by the names of the fields.

A reader passes over fields that it does not know, so that replicas of two versions can share a store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack

from baton.state.base import Crowd, InFlight, Report, RouterReport
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
            "hung": report.hung,
        }
    )


def unpack_worker(data: bytes) -> tuple[Report, int]:
    """The report and its beat. Raises ValueError where the bytes are no such record."""
    record = _unpacked(data)
    try:
        report = Report(
            _info(_packed(record["info"])),
            tuple(_made(PoolLoad, load) for load in record["loads"]),
            bool(record["draining"]),
            bool(record.get("hung", False)),
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
            "crowds": {model: list(crowd) for model, crowd in report.crowds.items()},
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
        crowds = {
            model: Crowd(*crowd[: len(Crowd._fields)])
            for model, crowd in record.get("crowds", {}).items()  # earlier versions say nothing
        }
        return RouterReport(
            str(record["router_id"]), in_flight, dict(record["spent_tokens"]), crowds
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no router's record: {error}") from error


@lru_cache(maxsize=16_384)
def _info(packed: bytes) -> WorkerInfo:
    """What a worker says of itself, which is the same in every report."""
    info: WorkerInfo = _made(WorkerInfo, msgpack.unpackb(packed))
    return info


def _made(kind: Any, value: Any) -> Any:
    """A value of type `kind` from what `asdict` and msgpack made of it."""
    maker = _maker(kind)
    return value if maker is None or value is None else maker(value)


@cache
def _maker(kind: Any) -> Callable[[Any], Any] | None:
    """How values of a type are made; None where they are what msgpack gives. Worked out once, since there
    is a record per worker and second."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # with None, of which nothing is made
        return _maker(next(each for each in arguments if each is not NoneType))
    if origin is tuple:
        return lambda values: tuple(_made(arguments[0], each) for each in values)
    if kind is PoolId:  # a named tuple, hence a list
        return lambda values: PoolId(*values[: len(PoolId._fields)])
    if is_dataclass(kind):
        return _dataclass_maker(kind)
    return kind if isinstance(kind, type) and issubclass(kind, Enum) else None


def _dataclass_maker(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    made = [name for name, hint in hints.items() if _maker(hint)]

    def make(record: Any) -> Any:
        values = {name: record[name] for name in hints if name in record}
        for name in made:
            if name in values:
                values[name] = _made(hints[name], values[name])
        return kind(**values)

    return make


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
