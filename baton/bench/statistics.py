"""The statistics of every benchmark: percentiles, and what interleaved pairs tell.

Pure: no clock, and every random draw comes from a seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50, 90, 95, 99)

_NUM_RESAMPLES = 2000
_CONFIDENCE = 0.95


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between closest ranks: 0 is the least, 100 the greatest value."""
    return _percentile_of_sorted(sorted(values), percent)


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def summarize(values: Sequence[float]) -> dict[str, float]:
    """mean, p50, p90, p95, p99; empty without values: there is no honest number then."""
    if not values:
        return {}
    ordered = sorted(values)
    points = {f"p{percent}": _percentile_of_sorted(ordered, percent) for percent in PERCENTILES}
    return {"mean": math.fsum(ordered) / len(ordered), **points}


def _percentile_of_sorted(ordered: Sequence[float], percent: float) -> float:
    if not ordered:
        raise ValueError("no values")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must lie in 0 to 100, is {percent}")
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    weight = rank - below
    return ordered[below] * (1 - weight) + ordered[above] * weight


@dataclass(frozen=True, slots=True)
class Estimate:
    """The median of `n` values, and its bootstrap 95 % interval."""

    median: float
    ci95: tuple[float, float]
    n: int


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The interval is the percentile bootstrap of the median: the middle 95 % of the medians of
    resamples of the values."""
    draw = random.Random(seed)
    medians = sorted(median(draw.choices(values, k=len(values))) for _ in range(_NUM_RESAMPLES))
    tail = 100 * (1 - _CONFIDENCE) / 2
    interval = (
        _percentile_of_sorted(medians, tail),
        _percentile_of_sorted(medians, 100 - tail),
    )
    return Estimate(median(values), interval, len(values))


def pairwise_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0
) -> Estimate:
    """Of two sides measured in turn, pair by pair: a machine's slow drift then cancels out."""
    _check_pairs(numerators, denominators)
    pairs = zip(numerators, denominators, strict=True)
    return estimate([above / below for above, below in pairs], seed=seed)


def pairwise_difference(
    ones: Sequence[float], others: Sequence[float], *, seed: int = 0
) -> Estimate:
    """Each of `ones` less its partner in `others`."""
    _check_pairs(ones, others)
    return estimate([one - other for one, other in zip(ones, others, strict=True)], seed=seed)


def _check_pairs(ones: Sequence[float], others: Sequence[float]) -> None:
    if len(ones) != len(others):
        raise ValueError(f"{len(ones)} values against {len(others)} are not pairs")
