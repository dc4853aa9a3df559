"""A cluster's traces, as a collector gets them over OTLP."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from baton import Client
from baton.cluster.local import LocalCluster

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: queue.SimpleQueue[Span] = queue.SimpleQueue()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.put(span)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    made = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_the_collector_sees_where_a_requests_time_went(
    collector: tuple[Collector, str], checkpoint: Path
) -> None:
    made, endpoint = collector
    with (
        LocalCluster(
            str(checkpoint),
            num_prefill_workers=1,
            router_flags={"otlp_endpoint": endpoint},
            environment={"BATON_ROUTER_POLICY_INTERFERENCE": "1000000"},
        ) as cluster,
        Client(cluster.address) as client,
    ):
        answer = client.generate(
            list(range(200)),
            max_tokens=5,
            ignore_eos=True,
            traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01",
        )
        assert answer.timeline.hand_off is not None
        spans = {span.name: span for span in (made.spans.get(timeout=30) for _ in range(5))}
    assert set(spans) == {"request", "queue", "prefill", "transfer", "decode"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
    request = spans["request"]
    assert request.parent_span_id.hex() == SPAN_ID
    for name in ("queue", "prefill", "transfer", "decode"):
        span = spans[name]
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= request.end_time_unix_nano
    moved = {each.key: each.value for each in spans["transfer"].attributes}
    assert moved["baton.transfer_bytes"].int_value == answer.timeline.hand_off.transfer_bytes > 0
    assert moved["baton.transport"].string_value == "shm"
