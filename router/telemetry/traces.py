"""Requests as OpenTelemetry traces, over OTLP. One span per request and one per phase, made of its instants
when it has ended: nothing is measured for the trace alone.

    request ─┬─ queue      received ... prefill_start
             ├─ prefill    prefill_start ... prefill_end
             ├─ transfer   transfer_start ... transfer_end
             └─ decode     decode_start ... finished

The request's span continues the caller's trace where it sent a `traceparent` (W3C Trace Context).
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baton import instants
from baton.rpc.context import TRACEPARENT
from router.request_life import RequestLife
from router.routing.policy import Choice

_PHASES = {
    "queue": (instants.RECEIVED, instants.PREFILL_START),
    "prefill": (instants.PREFILL_START, instants.PREFILL_END),
    "transfer": (instants.TRANSFER_START, instants.TRANSFER_END),
    "decode": (instants.DECODE_START, instants.FINISHED),
}
_GOOD_STATES = {"stop", "length", "cancelled"}  # of each sample

Value = str | int | float


class Traces:
    """Spans of one router, sent by `exporter` in the background."""

    def __init__(self, exporter: SpanExporter, router_id: str) -> None:
        resource = Resource.create(
            {"service.name": "baton-router", "service.instance.id": router_id}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("baton")

    @classmethod
    def over_otlp(cls, endpoint: str, router_id: str) -> Traces:
        """To a collector's gRPC port, `host:port`, without TLS."""
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return cls(OTLPSpanExporter(endpoint=endpoint, insecure=True), router_id)

    def ended(self, life: RequestLife) -> None:
        """Makes the spans of a request that has ended, however it did."""
        clock = time.time_ns() - time.monotonic_ns()
        at_ns = {name: clock + int(at_s * 1e9) for name, at_s in life.instants.items()}
        end_ns = at_ns.get(instants.FINISHED, time.time_ns())
        parent = TraceContextTextMapPropagator().extract({TRACEPARENT: life.request.traceparent})
        request = self._tracer.start_span(
            "request", parent, attributes=_attributes(life), start_time=at_ns[instants.RECEIVED]
        )
        if not _GOOD_STATES.issuperset(life.state.split("+")):
            request.set_status(Status(StatusCode.ERROR, life.state))
        inside = trace.set_span_in_context(request)
        for name, (begin, end) in _PHASES.items():
            if begin in at_ns and end in at_ns:
                phase = self._tracer.start_span(
                    name, inside, attributes=_of_phase(name, life), start_time=at_ns[begin]
                )
                phase.end(max(at_ns[begin], at_ns[end]))
        request.end(end_ns)

    def close(self) -> None:
        """Sends what is left; bounded by the exporter's own timeout."""
        self._provider.shutdown()


def _attributes(life: RequestLife) -> Mapping[str, Value]:
    usage, timeline = life.usage(), life.timeline()
    found: dict[str, Value] = {
        "gen_ai.request.model": life.model.name,
        "gen_ai.usage.input_tokens": usage.num_prompt_tokens,
        "gen_ai.usage.output_tokens": usage.num_output_tokens,
        "baton.request_id": life.request_id,
        "baton.state": life.state,
        "baton.decode_worker": timeline.decode_worker,
        "baton.prefill_worker": timeline.prefill_worker,
        "baton.num_cached_tokens": usage.num_cached_tokens,
        "baton.num_attempts": timeline.num_attempts,
        "baton.num_preemptions": timeline.num_preemptions,
    }
    if life.choice is not None:
        found |= _of_choice(life.choice)
    return found


def _of_choice(choice: Choice) -> Mapping[str, Value]:
    """Why the last attempt went where it did: the predicted parts of both ways, and what they cost others."""
    found: dict[str, Value] = {
        "baton.route.num_missing_tokens": choice.num_missing,
        "baton.route.num_streams": choice.num_streams,
        "baton.route.step_s": choice.step_s,
        "baton.route.lends": choice.lends,
    }
    for name, way in (("local", choice.local), ("remote", choice.remote)):
        if way is not None:
            found |= {f"baton.route.{name}.{part}": value for part, value in way._asdict().items()}
            found[f"baton.route.{name}.ttft_s"] = way.ttft_s
    return found


def _of_phase(name: str, life: RequestLife) -> Mapping[str, Value]:
    hand_off = life.hand_off
    if hand_off is None:
        return {}
    if name == "prefill":
        return {
            "baton.num_prefill_cached_tokens": hand_off.num_prefill_cached_tokens,
            "baton.num_lent_tokens": hand_off.num_lent_tokens,
        }
    if name == "transfer":
        return {
            "baton.transport": hand_off.transport,
            "baton.transfer_bytes": hand_off.transfer_bytes,
            "baton.transfer_s": hand_off.transfer_s,
            "baton.transfer_exposed_s": hand_off.transfer_exposed_s,
            "baton.num_resent_blocks": hand_off.num_resent_blocks,
        }
    return {}
