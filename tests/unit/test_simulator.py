"""The simulated cluster: the same for the same input, nothing lost, and worth believing."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest

from baton.errors import ConfigError
from baton.planner.arrival import Arrival, block_ids
from baton.planner.events import Events
from baton.planner.profile import MOCKER, DecodeCost, EngineProfile
from baton.planner.report import report, spread
from baton.planner.simulator import Baseline, ClusterShape, Outcome, simulate
from baton.planner.tables import silicon, splitwise
from baton.prefill_cost import PrefillCost
from router.routing.policy import PolicySettings

BATON = PolicySettings(hand_off_s=0.0, lend=False, local_prefill=False)
SHAPE = ClusterShape(2, 2, 400, 512, MOCKER, BATON)


def conversations(seed: int, num_requests: int = 300) -> list[Arrival]:
    """Turns of growing conversations, bursts of them every three seconds."""
    rng = random.Random(seed)
    lengths = [rng.randrange(512, 6000) for _ in range(40)]
    arrivals = []
    for number in range(num_requests):
        talk = rng.randrange(len(lengths))
        lengths[talk] += rng.randrange(100, 1500)
        hashes = [1000 * talk + index for index in range(-(-lengths[talk] // 512))]
        ids = block_ids(hashes, 512, lengths[talk], 512, unique=number)
        arrivals.append(Arrival(3.0 * (number // 6), lengths[talk], rng.randrange(1, 300), ids))
    return arrivals


def check(outcome: Outcome, num_requests: int) -> None:
    assert len(outcome.requests) == num_requests
    for request in outcome.requests:
        arrival = request.arrival
        assert request.started_s is not None
        assert request.prefilled_s is not None
        assert request.first_token_s is not None
        assert request.finished_s is not None
        assert arrival.at_s <= request.started_s < request.prefilled_s
        assert request.prefilled_s < request.first_token_s <= request.finished_s
        assert request.num_cached_tokens < arrival.num_prompt_tokens
    num_gaps = sum(num for _, num in outcome.gaps)
    assert num_gaps == sum(r.arrival.num_output_tokens - 1 for r in outcome.requests)


@pytest.mark.parametrize(
    "shape",
    [
        SHAPE,
        replace(SHAPE, policy=Baseline.ROUND_ROBIN),
        replace(SHAPE, policy=Baseline.OVERLAP),
        replace(SHAPE, policy=replace(BATON, local_prefill=True)),
        replace(SHAPE, num_prefill=0, policy=replace(BATON, local_prefill=True)),
        replace(SHAPE, num_routers=2),
        replace(SHAPE, num_blocks=60),
        replace(SHAPE, profile=replace(MOCKER, kv_bytes_per_token=1e5, hand_off_s=0.005)),
    ],
)
def test_every_request_ends_and_the_same_input_gives_the_same(shape: ClusterShape) -> None:
    arrivals = conversations(1)
    first, second = simulate(shape, arrivals), simulate(shape, arrivals)
    check(first, len(arrivals))
    assert report(first) == report(second)
    assert [(r.prefill, r.decode) for r in first.requests] == [
        (r.prefill, r.decode) for r in second.requests
    ]


def test_knowing_what_is_cached_where_beats_round_robin() -> None:
    arrivals = conversations(2)
    ours, theirs = (
        report(simulate(replace(SHAPE, policy=policy), arrivals))
        for policy in (BATON, Baseline.ROUND_ROBIN)
    )
    assert ours.reuse_ratio > 1.3 * theirs.reuse_ratio
    assert ours.ttft_ms.mean < 0.7 * theirs.ttft_ms.mean
    assert ours.imbalance < 1.25


def test_a_lone_request_takes_what_the_profile_says() -> None:
    arrivals = [Arrival(0.0, 1000, 11, ())]
    (request,) = simulate(SHAPE, arrivals).requests
    prefill_s = MOCKER.prefill.step_s(1000)
    step_s = MOCKER.decode.step_s(1, 1000, 2 / 400)
    assert request.prefilled_s == pytest.approx(prefill_s)
    assert request.first_token_s == pytest.approx(prefill_s + step_s)
    assert request.finished_s == pytest.approx(prefill_s + 11 * step_s)
    assert request.predicted_ttft_s is not None


def test_predictions_come_true_where_nothing_comes_after() -> None:
    """Far apart, so that nobody waits; the first few teach."""
    rng = random.Random(4)
    lengths = [rng.randrange(500, 20_000) for _ in range(60)]
    arrivals = [
        Arrival(10.0 * number, length, 5, block_ids((), 512, length, 512, unique=number))
        for number, length in enumerate(lengths)
    ]
    for request in simulate(SHAPE, arrivals).requests[20:]:
        assert request.prefilled_s is not None
        actual_s = request.prefilled_s - request.arrival.at_s
        assert request.predicted_ttft_s == pytest.approx(actual_s, rel=0.05)


def test_kv_that_takes_time_to_move_delays_the_first_token() -> None:
    slow = EngineProfile(
        "slow", PrefillCost(0.0, 1e-3, 0.0, 1000), DecodeCost(0.01), 1e6, 1e8, num_layers=10
    )
    (request,) = simulate(replace(SHAPE, profile=slow), [Arrival(0.0, 1000, 1, ())]).requests
    # 1 s of prefill hides the most of 10 s of transfer that it can.
    assert request.first_token_s == pytest.approx(1.0 + 9.0 + 0.01)


def test_blocks_of_a_trace_are_cut_and_joined() -> None:
    whole = block_ids([7, 8, 9], 512, 1400, 512, unique=0)
    assert len(whole) == 2
    assert len(set(block_ids([7, 8, 9], 512, 1400, 64, unique=0))) == 21
    longer = block_ids([7, 8, 10], 512, 1536, 64, unique=1)
    assert longer[:16] == block_ids([7, 8, 9], 512, 1400, 64, unique=0)[:16]
    assert longer[16] != block_ids([7, 8, 9], 512, 1400, 64, unique=0)[16]
    assert block_ids([7, 8, 9], 512, 1400, 1024, unique=0) == block_ids(
        [7, 8, 4], 512, 1030, 1024, unique=5
    )
    assert block_ids((), 512, 1400, 512, unique=1) != block_ids((), 512, 1400, 512, unique=2)
    with pytest.raises(ConfigError, match="block_size"):
        block_ids([7, 8, 9], 512, 1400, 100, unique=0)


def test_events_of_one_instant_keep_their_order() -> None:
    events = Events()
    seen: list[int] = []
    for number in range(5):
        events.at(1.0 - (number == 4), partial(seen.append, number))
    events.run()
    assert seen == [4, 0, 1, 2, 3]


def test_a_spread_counts_by_weight() -> None:
    points = spread([(0.001, 98), (0.1, 1), (1.0, 1)])
    assert (points.p50, points.p90) == (1.0, 1.0)
    assert points.p99 == pytest.approx(1000.0)
    assert points.mean == pytest.approx(11.98)


def test_a_profile_is_fitted_from_published_rows() -> None:
    rows = [
        {
            "model": "m",
            "hardware": "h",
            "tensor_parallel": "8",
            "prompt_size": str(prompt),
            "batch_size": str(batch),
            "prompt_time": str(20 + 0.1 * prompt * batch),
            "token_time": str(30 + 2 * batch),
        }
        for prompt, batch in [(128, 1), (512, 1), (2048, 1), (512, 8), (512, 16), (512, 32)]
    ]
    profile = splitwise(rows, "m", "h", "8")
    assert profile.prefill.step_s(1000) == pytest.approx(0.12, rel=0.02)
    assert profile.decode.step_s(10, 0, 0.0) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="m/h/8"):
        splitwise(rows, "m", "other", "8")


def test_waiting_is_no_part_of_a_silicon_prompt() -> None:
    rows = [
        {
            "mode": mode,
            "model_path": "org/m",
            "system": "s",
            "precision": "fp8",
            "isl": str(length),
            "batch_size": str(batch),
            "silicon_ttft_ms": str(length / 10 * batch),
            "silicon_tpot_ms": "8",
        }
        for mode, length, batch in [("agg", 1000, 1), ("agg", 1000, 64), ("agg", 8000, 1)]
    ]
    profile = silicon([*rows, {**rows[0], "mode": "disagg"}], "org/m", "s", "fp8")
    assert profile.prefill.step_s(1000) == pytest.approx(0.1, rel=0.02)
    assert profile.decode.step_s(64, 0, 0.0) == pytest.approx(0.008)


def test_the_compared_router_goes_by_tokens_that_are_to_be_computed() -> None:
    """Those of a worker's queue, and those that it lacks of this prompt."""
    blocks = partial(block_ids, hashed_size=512, block_size=512)
    prompt = blocks(range(8), num_tokens=4096, unique=0)
    longer = blocks(range(9), num_tokens=4608, unique=1)
    other = blocks(range(100, 140), num_tokens=20_480, unique=2)
    trace = [Arrival(0.0, 4096, 1, prompt), Arrival(5.0, 4608, 1, longer)]
    first, again = simulate(replace(SHAPE, policy=Baseline.OVERLAP), trace).requests
    assert again.prefill == first.prefill
    assert again.num_cached_tokens == 4096
    trace[1:1] = [Arrival(5.0, 20_480, 1, other), Arrival(5.0, 20_480, 1, (*prompt, *other[8:]))]
    first, busy, shared, again = simulate(replace(SHAPE, policy=Baseline.OVERLAP), trace).requests
    assert shared.prefill == first.prefill != busy.prefill
    assert again.prefill == first.prefill, "12,800 tokens more are queued at the other"


def test_a_long_prompt_counts_at_the_door_as_what_it_takes() -> None:
    """Not by the rate of the short ones that are common: a burst of all is let in at once."""
    arrivals = [Arrival(0.2 * number, 200, 1, ()) for number in range(40)]
    arrivals += [Arrival(10.0, 30_000, 1, ()) for _ in range(4)]
    outcome = simulate(replace(SHAPE, num_prefill=4), arrivals)
    assert [request.routed_s for request in outcome.requests[40:]] == [10.0] * 4
