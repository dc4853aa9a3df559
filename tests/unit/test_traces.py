"""A request's spans, from its instants."""

from __future__ import annotations

import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from baton import instants
from baton.types import HandOffReport, PoolId
from router.request_life import RequestLife
from router.routing.policy import Choice, Way
from router.routing.pools import Pool
from router.telemetry.traces import Traces
from tests.unit.lives import make_life, make_worker

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def spans_of(life: RequestLife) -> dict[str, ReadableSpan]:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter, "router-1")
    traces.ended(life)
    traces.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def ended(traceparent: str = "") -> RequestLife:
    life = make_life(traceparent=traceparent)
    now_s = time.monotonic()
    life.instants = {name: now_s - 1 + 0.1 * i for i, name in enumerate(instants.ORDER)}
    life.hand_off = HandOffReport("p-1", 1000, 0.05, 0.01, 64, transport="shm", num_blocks=3)
    life.state = "stop"
    return life


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def test_every_phase_is_a_span_of_the_request() -> None:
    before_ns = time.time_ns()
    spans = spans_of(ended())
    assert set(spans) == {"request", "queue", "prefill", "transfer", "decode"}
    request = spans["request"]
    assert request.parent is None
    received_ns, _ = times(request)
    assert received_ns == pytest.approx(before_ns - 1e9, abs=5e8)
    expected = {"queue": (0, 3), "prefill": (3, 4), "transfer": (5, 6), "decode": (8, 9)}
    for name, ends in expected.items():
        span = spans[name]
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        expected_ns = [received_ns + end * 1e8 for end in ends]
        assert list(times(span)) == pytest.approx(expected_ns, abs=1e6)
    assert spans["transfer"].attributes == {
        "baton.transport": "shm",
        "baton.transfer_bytes": 1000,
        "baton.transfer_s": 0.05,
        "baton.transfer_exposed_s": 0.01,
        "baton.num_resent_blocks": 0,
    }


def test_the_request_says_why_it_went_where_it_went() -> None:
    life = ended()
    decode = Pool(PoolId("d-1"), make_worker("d-1"))
    decode.begin()
    ways = Way(0.5, 0.25, 0.0, 0.125), Way(0.0, 1.0, 2.0, 0.0)
    life.choice = Choice(decode, None, 100, 36, *ways, num_streams=decode.num_streams)
    decode.end()  # what is in flight later says nothing of the choice
    found = spans_of(life)["request"].attributes
    assert found is not None
    route = {name: value for name, value in found.items() if name.startswith("baton.route.")}
    assert route == {
        "baton.route.num_missing_tokens": 36,
        "baton.route.num_streams": 1,
        "baton.route.step_s": 0.0,
        "baton.route.lends": False,
        "baton.route.local.wait_s": 0.5,
        "baton.route.local.compute_s": 0.25,
        "baton.route.local.transfer_s": 0.0,
        "baton.route.local.others_s": 0.125,
        "baton.route.local.ttft_s": 0.75,
        "baton.route.remote.wait_s": 0.0,
        "baton.route.remote.compute_s": 1.0,
        "baton.route.remote.transfer_s": 2.0,
        "baton.route.remote.others_s": 0.0,
        "baton.route.remote.ttft_s": 3.0,
    }


def test_it_continues_the_callers_trace() -> None:
    spans = spans_of(ended(traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01"))
    request = spans["request"]
    assert request.context.trace_id == int(TRACE_ID, 16)
    assert request.parent is not None
    assert request.parent.span_id == int(SPAN_ID, 16)
    assert {span.context.trace_id for span in spans.values()} == {int(TRACE_ID, 16)}


def test_a_request_that_failed_early_has_an_error_and_few_spans() -> None:
    life = ended()
    received_s = life.instants[instants.RECEIVED]
    life.instants, life.hand_off = {instants.RECEIVED: received_s}, None
    life.state = "overloaded"
    spans = spans_of(life)
    assert set(spans) == {"request"}
    assert spans["request"].status.description == "overloaded"
    assert not spans["request"].status.is_ok
