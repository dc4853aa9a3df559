"""The trace in a call's metadata."""

import pytest

from baton.rpc.context import metadata, traceparent

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_trace_goes_through() -> None:
    assert traceparent(dict(metadata(TRACE))) == TRACE


def test_no_trace() -> None:
    assert metadata() == ()
    assert traceparent({}) == traceparent(None) == ""


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "00",
        TRACE.upper(),
        TRACE + "-x",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        b"\xff",
    ],
)
def test_malformed_trace_is_ignored(malformed: str | bytes) -> None:
    assert traceparent({"traceparent": malformed}) == ""
