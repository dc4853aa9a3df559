"""The statistics of every benchmark."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.bench.statistics import (
    estimate,
    median,
    pairwise_difference,
    pairwise_ratio,
    percentile,
    summarize,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


def test_percentiles_interpolate() -> None:
    values = [40.0, 10.0, 30.0, 20.0]
    assert percentile(values, 0) == 10
    assert percentile(values, 50) == 25
    assert percentile(values, 90) == pytest.approx(37)
    assert percentile(values, 100) == 40
    assert percentile([7.0], 99) == 7


@given(VALUES)
def test_the_median_is_the_standard_library_s(values: list[float]) -> None:
    assert median(values) == pytest.approx(statistics.median(values), abs=1e-6)


@given(VALUES, st.floats(0, 100), st.floats(0, 100))
def test_percentiles_do_not_decrease(values: list[float], one: float, other: float) -> None:
    least, most = sorted((one, other))
    assert percentile(values, least) <= percentile(values, most) + 1e-6
    assert min(values) - 1e-6 <= percentile(values, least)
    assert percentile(values, most) <= max(values) + 1e-6


@pytest.mark.parametrize("percent", [-1, 100.5])
def test_a_percent_beyond_the_ends(percent: float) -> None:
    with pytest.raises(ValueError, match="0 to 100"):
        percentile([1.0], percent)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        median([])
    assert summarize([]) == {}


def test_summary() -> None:
    values = [float(each) for each in range(101)]
    assert summarize(values) == {"mean": 50, "p50": 50, "p90": 90, "p95": 95, "p99": 99}


def test_the_ratio_of_pairs_ignores_what_both_sides_share() -> None:
    """A machine that slows down threefold over the run changes neither median nor interval much."""
    draw = random.Random(1)
    slowness = [1 + 2 * i / 30 for i in range(31)]
    below = [s * draw.gauss(1, 0.01) for s in slowness]
    above = [s * 1.2 * draw.gauss(1, 0.01) for s in slowness]
    ratio = pairwise_ratio(above, below)
    assert ratio.n == 31
    assert ratio.median == pytest.approx(1.2, abs=0.01)
    assert ratio.ci95[0] < ratio.median < ratio.ci95[1]
    assert ratio.ci95[1] - ratio.ci95[0] < 0.02


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        draw = random.Random(seed)
        above = [draw.gauss(1, 0.1) for _ in range(21)]
        low, high = pairwise_ratio(above, [1.0] * 21, seed=seed).ci95
        covered += low <= 1 <= high
    assert 51 <= covered <= 60


def test_the_same_seed_gives_the_same_interval() -> None:
    above, below = [1.0, 1.1, 1.3, 0.9, 1.2], [1.0] * 5
    assert pairwise_ratio(above, below, seed=3) == pairwise_ratio(above, below, seed=3)


def test_the_difference_of_pairs_ignores_what_both_sides_share() -> None:
    drift = [float(each) for each in range(15)]
    difference = pairwise_difference([each + 2 for each in drift], drift)
    assert (difference.median, difference.ci95, difference.n) == (2, (2, 2), 15)


def test_the_estimate_of_one_value_is_the_value() -> None:
    assert estimate([3.0]).ci95 == (3, 3)
    with pytest.raises((ValueError, IndexError)):
        estimate([])


def test_what_does_not_pair_up() -> None:
    for pairwise in (pairwise_ratio, pairwise_difference):
        with pytest.raises(ValueError, match="not pairs"):
            pairwise([1.0, 2.0], [1.0])
