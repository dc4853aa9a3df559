"""What the hand-offs of this router's requests came to, for Prometheus, by transport.

GB/s          rate(baton_transfer_bytes_total) / rate(baton_transfer_busy_seconds_total)
part hidden   1 - rate(baton_transfer_exposed_seconds_sum) / rate(baton_transfer_busy_seconds_total)
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from router.request_life import RequestLife

_EXPOSED_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2)


class HandOffMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, label: str = "transport") -> Counter:
            return Counter(name, text, [label], registry=registry)

        self._hand_offs = counter("baton_hand_offs", "Prompts computed elsewhere")
        self._bytes = counter("baton_transfer_bytes", "KV moved to decode workers")
        self._blocks = counter("baton_transfer_blocks", "KV blocks moved to decode workers")
        self._busy = counter("baton_transfer_busy_seconds", "For which links were moving KV")
        self._resent = counter("baton_resent_blocks", "KV blocks that failed their checksum")
        self._lent = counter(
            "baton_lent_tokens", "Whose KV prefill workers took from decode workers"
        )
        self._failed = counter("baton_hand_offs_failed", "Given up, by their error", "error")
        self._exposed = Histogram(
            "baton_transfer_exposed_seconds",
            "From the end of a prefill to its last block verified",
            ["transport"],
            buckets=_EXPOSED_BUCKETS,
            registry=registry,
        )

    def ended(self, life: RequestLife) -> None:
        for error in life.lost_prefills:
            self._failed.labels(error).inc()
        hand_off = life.hand_off
        if hand_off is None:
            return
        transport = hand_off.transport
        self._hand_offs.labels(transport).inc()
        self._bytes.labels(transport).inc(hand_off.transfer_bytes)
        self._blocks.labels(transport).inc(hand_off.num_blocks)
        self._busy.labels(transport).inc(hand_off.transfer_s)
        self._resent.labels(transport).inc(hand_off.num_resent_blocks)
        self._lent.labels(transport).inc(hand_off.num_lent_tokens)
        if hand_off.num_blocks:  # none where the first token was the last
            self._exposed.labels(transport).observe(hand_off.transfer_exposed_s)
