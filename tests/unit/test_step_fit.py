"""What a prefill step costs, learned from steps."""

from __future__ import annotations

import random

import pytest

from baton.prefill_cost import PrefillCost
from baton.scheduling.step_fit import StepFit
from baton.scheduling.step_time import StepTimeModel

MOCKER = PrefillCost(4.209989e-10, 1.518344e-05, 16.50142e-03, 8192)


def learned(truth: PrefillCost, sizes: list[int], noise: float = 0.0, seed: int = 1) -> PrefillCost:
    rng, fit = random.Random(seed), StepFit()
    for num_tokens in sizes:
        fit.observe(num_tokens, truth.step_s(num_tokens) * rng.uniform(1 - noise, 1 + noise))
    cost = fit.prefill_cost(truth.step_tokens)
    assert cost is not None
    return cost


def test_nothing_is_known_before_the_first_step() -> None:
    fit = StepFit()
    assert fit.prefill_cost(512) is None
    fit.observe(0, 1.0)
    fit.observe(100, 0.0)
    assert fit.prefill_cost(512) is None


def test_one_size_gives_a_rate() -> None:
    cost = learned(PrefillCost(0.0, 1e-3, 0.0, 512), [128] * 5)
    assert cost.quadratic_s == cost.fixed_s == 0.0
    assert cost.linear_s == pytest.approx(1e-3)


def test_a_curve_is_found_from_many_sizes() -> None:
    rng = random.Random(2)
    cost = learned(MOCKER, [rng.randrange(1, 8192) for _ in range(500)])
    for num_tokens in (50, 500, 3000, 8192):
        assert cost.step_s(num_tokens) == pytest.approx(MOCKER.step_s(num_tokens), rel=0.03)


def test_noise_and_outliers_bend_it_little() -> None:
    rng = random.Random(3)
    sizes = [rng.randrange(64, 8192) for _ in range(800)]
    fit = StepFit()
    for number, num_tokens in enumerate(sizes):
        factor = 100.0 if number % 40 == 39 else rng.uniform(0.9, 1.1)
        fit.observe(num_tokens, MOCKER.step_s(num_tokens) * factor)
    cost = fit.prefill_cost(8192)
    assert cost is not None
    assert min(cost.quadratic_s, cost.linear_s, cost.fixed_s) >= 0.0
    for num_tokens in (500, 3000, 8192):
        assert cost.step_s(num_tokens) == pytest.approx(MOCKER.step_s(num_tokens), rel=0.25)


def test_it_follows_an_engine_that_becomes_slower() -> None:
    fit = StepFit()
    for slower in (1.0, 1.9):
        for _ in range(60):
            for num_tokens in (100, 1000, 5000):
                fit.observe(num_tokens, slower * MOCKER.step_s(num_tokens))
    cost = fit.prefill_cost(8192)
    assert cost is not None
    assert cost.step_s(3000) == pytest.approx(1.9 * MOCKER.step_s(3000), rel=0.05)


def test_a_long_prompt_pays_for_every_step() -> None:
    cost = PrefillCost(1e-9, 1e-5, 0.01, 1000)
    assert cost.prompt_s(2500) == pytest.approx(2 * cost.step_s(1000) + cost.step_s(500))
    assert cost.prompt_s(2000) == pytest.approx(2 * cost.step_s(1000))
    assert cost.cheapest_step(8192) == 3162
    assert cost.cheapest_step(2000) == 2000


def test_a_worker_says_what_its_steps_cost_beside_decoding() -> None:
    model = StepTimeModel()
    model.observe(0, 4, 0.01)
    assert model.prefill_cost is None
    for num_tokens in (100, 200, 400):
        model.observe(num_tokens, 4, 0.01 + num_tokens * 1e-3)
    model.chunk_budget(0.25, 0, smallest=16, largest=512)
    cost = model.prefill_cost
    assert cost is not None
    assert cost.step_tokens == model.step_tokens
    assert cost.step_s(300) == pytest.approx(0.3, rel=0.02)


def test_what_a_stream_more_costs_is_known_once_their_number_has_changed() -> None:
    model = StepTimeModel()
    for _ in range(20):
        model.observe(0, 4, 0.012)
    assert model.decode_stream_s == 0.0
    for _ in range(20):
        for num_streams in (1, 4, 16, 32):
            model.observe(0, num_streams, 0.01 + 0.0005 * num_streams)
    assert model.decode_stream_s == pytest.approx(0.0005, rel=0.05)
