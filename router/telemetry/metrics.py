"""What the router measures, for Prometheus: `baton_*`, and the names that scrapers know already."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baton import instants
from router.gate import Gate
from router.request_life import RequestLife
from router.routing.pools import Pools
from router.telemetry.hand_off_metrics import HandOffMetrics

_TTFT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)
_ERROR_BUCKETS = (-10, -3, -1, -0.3, -0.1, -0.03, -0.01, 0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
_E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry per router. Latencies derive from a request's instants."""

    def __init__(self, gate: Gate, pools: Pools) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "baton_requests", "Requests by how they ended", ["state"], registry=registry
        )
        self._prompt_tokens = Counter(
            "baton_prompt_tokens", "Prompt tokens of ended requests", registry=registry
        )
        self._cached_tokens = Counter(
            "baton_cached_tokens", "Prompt tokens found in a prefix cache", registry=registry
        )
        self._output_tokens = Counter("baton_output_tokens", "Output tokens", registry=registry)
        self._continuations = Counter(
            "baton_continuations", "Attempts after a worker was lost", registry=registry
        )
        self._hand_offs = HandOffMetrics(registry)
        self._ttft = _seconds("baton_ttft_seconds", "Time to first token", _TTFT_BUCKETS, registry)
        self._itl = _seconds("baton_itl_seconds", "Mean inter-token latency of a request",
                             _ITL_BUCKETS, registry)  # fmt: skip
        self._e2e = _seconds("baton_e2e_seconds", "Received to finished", _E2E_BUCKETS, registry)
        self._error = _seconds(
            "baton_ttft_prediction_error_seconds",
            "Predicted less actual time from routing to the first token",
            _ERROR_BUCKETS,
            registry,
        )
        registry.register(_Gauges(gate, pools))

    def ended(self, life: RequestLife) -> None:
        """Counts a request that ended, however it did."""
        usage, at = life.usage(), life.instants
        self._requests.labels(life.state).inc()
        self._prompt_tokens.inc(usage.num_prompt_tokens)
        self._cached_tokens.inc(usage.num_cached_tokens)
        self._output_tokens.inc(usage.num_output_tokens)
        self._continuations.inc(max(0, life.num_attempts - 1))
        self._hand_offs.ended(life)
        if instants.FIRST_TOKEN not in at or instants.FINISHED not in at:
            return
        self._ttft.observe(max(0.0, at[instants.FIRST_TOKEN] - at[instants.RECEIVED]))
        if life.choice is not None and life.num_attempts == 1 and instants.ROUTED in at:
            actual_s = at[instants.FIRST_TOKEN] - at[instants.ROUTED]
            self._error.observe(life.choice.way.ttft_s - actual_s)
        self._e2e.observe(at[instants.FINISHED] - at[instants.RECEIVED])
        num_gaps = usage.num_output_tokens // len(life.samples) - 1
        if num_gaps > 0:
            decode_s = at[instants.FINISHED] - at[instants.FIRST_TOKEN]
            self._itl.observe(max(0.0, decode_s) / num_gaps)


def _seconds(
    name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry
) -> Histogram:
    return Histogram(name, text, buckets=buckets, registry=registry)


class _Gauges(Collector):
    """Read from the gate and from the workers' last reports when somebody scrapes."""

    def __init__(self, gate: Gate, pools: Pools) -> None:
        self._gate = gate
        self._pools = pools

    def collect(self) -> Iterable[Metric]:
        yield from self._of_the_gate()
        running = _gauge("vllm:num_requests_running", "Requests being computed")
        waiting = _gauge("vllm:num_requests_waiting", "Requests queued on workers")
        usage = _gauge("vllm:kv_cache_usage_perc", "Blocks held over all; 1 is full")
        blocks = GaugeMetricFamily("baton_kv_blocks", "KV blocks", labels=["pool", "state"])
        for pool in self._pools:
            if (load := pool.load) is None:
                continue
            labels = [str(pool.id), pool.worker.model]
            running.add_metric(labels, load.num_running_requests)
            waiting.add_metric(labels, load.num_waiting_requests)
            usage.add_metric(labels, load.num_held_blocks / max(1, load.num_total_blocks))
            for state in ("free", "held", "cached", "quarantined"):
                blocks.add_metric([str(pool.id), state], getattr(load, f"num_{state}_blocks"))
        yield from (running, waiting, usage, blocks)

    def _of_the_gate(self) -> Iterable[Metric]:
        waiting, in_flight, queued_s = (
            GaugeMetricFamily(name, text, labels=["model_name"])
            for name, text in (
                ("baton_requests_waiting", "Requests at the gate"),
                ("baton_requests_in_flight", "Requests with the workers"),
                ("baton_queued_work_seconds", "Of one worker, for the prompts at the gate"),
            )
        )
        for model, door in self._gate.doors.items():
            waiting.add_metric([model], door.admission.num_waiting)
            in_flight.add_metric([model], door.admission.num_in_flight)
            queued_s.add_metric([model], door.admission.queued_s)
        yield from (waiting, in_flight, queued_s)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["pool", "model_name"])
