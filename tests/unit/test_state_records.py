"""What goes into a shared store comes out of it as it was, also for a reader of another version."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest

from baton.prefill_cost import PrefillCost
from baton.state import records
from baton.state.base import Crowd, InFlight, RouterReport
from baton.types import PoolId
from tests.reports import report


def test_a_workers_report_comes_back_whole() -> None:
    told = report("d0", incarnation=3, num_running=2)
    assert records.unpack_worker(records.pack_worker(told, 17)) == (told, 17)
    load = replace(told.loads[0], prefill_cost=PrefillCost(1e-9, 1e-4, 1e-3, 512))
    told = replace(told, loads=(load, load), draining=True)
    assert records.unpack_worker(records.pack_worker(told, 18)) == (told, 18)


def test_a_routers_report_comes_back_whole() -> None:
    told = RouterReport("r0", {PoolId("d0", 1): InFlight(3, 640)}, {"acme": 12.5, "": 1.0})
    assert records.unpack_router(records.pack_router(told)) == told
    told = replace(told, crowds={"m": Crowd(3, 1.5, 2, 0.5)})
    assert records.unpack_router(records.pack_router(told)) == told
    earlier = msgpack.unpackb(records.pack_router(told))
    del earlier["crowds"]
    assert records.unpack_router(msgpack.packb(earlier)) == replace(told, crowds={})


def test_fields_of_a_later_version_are_passed_over() -> None:
    record = msgpack.unpackb(records.pack_worker(report("d0"), 1))
    record["mood"] = record["info"]["mood"] = record["loads"][0]["mood"] = "good"
    assert records.unpack_worker(msgpack.packb(record)) == (report("d0"), 1)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", b"{}"])
def test_what_is_no_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="no "):
        records.unpack_worker(data)
    with pytest.raises(ValueError, match="no "):
        records.unpack_router(data)
