"""What a simulated run comes to, in the figures by which routers are compared. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.planner.simulator import Outcome
from baton.types import PoolId


@dataclass(frozen=True, slots=True)
class Spread:
    """In milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """`reuse_ratio`: prompt tokens that were found in a cache, of all. `imbalance`: time for which the
    busiest prefill pool computed, over the mean. `prefill_imbalance` and `decode_imbalance`: requests of
    the worker that got most, over the mean. `num_local`: prompts that decode pools computed.
    `num_refused`: requests refused at the door. `prediction_error_ms`: predicted less actual TTFT, from the
    routing on."""

    requests: int
    reuse_ratio: float
    ttft_ms: Spread
    itl_ms: Spread
    e2e_ms: Spread
    imbalance: float
    prefill_imbalance: float
    decode_imbalance: float
    num_local: int
    num_refused: int
    prediction_error_ms: Spread | None


def report(outcome: Outcome) -> ReplayReport:
    done = [r for r in outcome.requests if r.first_token_s is not None and r.finished_s is not None]
    ttft = [r.first_token_s - r.arrival.at_s for r in done if r.first_token_s is not None]
    e2e = [r.finished_s - r.arrival.at_s for r in done if r.finished_s is not None]
    errors = [
        r.predicted_ttft_s - (r.prefilled_s - r.routed_s)
        for r in done
        if r.predicted_ttft_s is not None and r.prefilled_s is not None and r.routed_s is not None
    ]
    num_tokens = sum(r.arrival.num_prompt_tokens for r in done)
    return ReplayReport(
        requests=len(done),
        reuse_ratio=sum(r.num_cached_tokens for r in done) / max(1, num_tokens),
        ttft_ms=spread((value, 1) for value in ttft),
        itl_ms=spread(outcome.gaps),
        e2e_ms=spread((value, 1) for value in e2e),
        imbalance=_over_mean(outcome.busy_s.values()),
        prefill_imbalance=_over_mean(_counts((r.prefill for r in done), outcome.busy_s)),
        decode_imbalance=_over_mean(_counts((r.decode for r in done), outcome.decode)),
        num_local=sum(not r.prefill for r in done),
        num_refused=sum(r.refused for r in outcome.requests),
        prediction_error_ms=spread((value, 1) for value in errors) if errors else None,
    )


def _counts(workers: Iterable[str], pools: Iterable[PoolId]) -> Iterable[int]:
    """How often each of `pools` is among `workers`."""
    counts = Counter(workers)
    return [counts[pool.worker_id] for pool in pools]


def _over_mean(values: Iterable[float]) -> float:
    values = list(values)
    total = sum(values)
    return max(values) * len(values) / total if total else 1.0


def spread(weighted_s: Iterable[tuple[float, int]]) -> Spread:
    """Of values in seconds, each as often as its weight says."""
    values = sorted((value, weight) for value, weight in weighted_s if weight)
    total = sum(weight for _, weight in values)
    if not total:
        return Spread(0.0, 0.0, 0.0, 0.0)
    mean = sum(value * weight for value, weight in values) / total
    return Spread(1e3 * mean, *(1e3 * point for point in _points(values, total)))


def _points(values: Sequence[tuple[float, int]], total: int) -> list[float]:
    points, seen, wanted = [], 0, [0.5, 0.9, 0.99]
    for value, weight in values:
        seen += weight
        while wanted and seen > wanted[0] * total:
            points.append(value)
            del wanted[0]
    return points + [values[-1][0]] * len(wanted)
