"""The ten named instants of a request, from which every latency, span and timeline derives.

Each process takes them on its own monotonic clock; the router maps a worker's instants to its clock
by an offset that it estimates on every heartbeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RECEIVED = "received"
ADMITTED = "admitted"
ROUTED = "routed"
PREFILL_START = "prefill_start"
PREFILL_END = "prefill_end"
TRANSFER_START = "transfer_start"
TRANSFER_END = "transfer_end"
DECODE_START = "decode_start"
FIRST_TOKEN = "first_token"
FINISHED = "finished"

ORDER = (
    RECEIVED,
    ADMITTED,
    ROUTED,
    PREFILL_START,
    PREFILL_END,
    TRANSFER_START,
    TRANSFER_END,
    FIRST_TOKEN,
    DECODE_START,
    FINISHED,
)


@dataclass(slots=True)
class ClockOffset:
    """Estimates `worker clock - own clock` from request/answer pairs (Cristian's algorithm).

    The exchange with the shortest round trip bounds the error best; it ages so that drift is followed.
    """

    offset_s: float = 0.0
    best_round_trip_s: float = float("inf")
    num_exchanges: int = 0

    def update(self, sent_s: float, worker_s: float, received_s: float) -> None:
        self.num_exchanges += 1
        round_trip_s = received_s - sent_s
        self.best_round_trip_s *= 1.05
        if round_trip_s <= self.best_round_trip_s:
            self.best_round_trip_s = round_trip_s
            self.offset_s = worker_s - (sent_s + received_s) / 2

    def to_own(self, worker_s: float) -> float:
        return worker_s - self.offset_s


def relative(instants: Mapping[str, float]) -> dict[str, float]:
    """Instants on one clock -> offsets from `received` in seconds, in order, none negative.

    Clock estimates err by up to half a round trip, so an instant is never put before `received`.
    """
    start = instants[RECEIVED]
    return {name: max(0.0, instants[name] - start) for name in ORDER if name in instants}
