"""How a router follows a pool's queue between the pool's own words."""

from __future__ import annotations

import random

import pytest

from baton.state.base import InFlight
from baton.types import PoolId, Role
from router.routing.policy import Demand, PolicySettings, choose
from router.routing.prefill_queue import PrefillQueue, Queued
from tests.unit.test_policy import pool

NEVER = 1e9  # a target so long that every delay counts as 1


def test_an_empty_queue_costs_nothing() -> None:
    quote = PrefillQueue().quote(1.0, 5.0, NEVER)
    assert (quote.wait_s, quote.harm_s) == (0.0, 0.0)


def test_a_long_prompt_waits_for_short_ones_and_a_short_one_passes_them() -> None:
    queue = PrefillQueue(step_s=0.1)
    queue.add(1000, 1.0, now_s=0.0)
    queue.add(3000, 3.0, now_s=0.0)
    assert queue.quote(5.0, 0.0, NEVER).wait_s == pytest.approx(4.0)
    short = queue.quote(0.5, 0.0, NEVER)
    assert short.wait_s == pytest.approx(0.1), "the step in progress is not broken off"
    assert short.harm_s == pytest.approx(0.5 * 2)
    assert queue.quote(2.0, 0.0, NEVER).wait_s == pytest.approx(1.0)


def test_delaying_a_long_wait_costs_more() -> None:
    queue = PrefillQueue(step_s=0.1)
    queue.add(2000, 2.0, now_s=0.0)
    queue.add(2000, 2.0, now_s=0.0)
    assert queue.quote(0.1, 0.0, 1.0).harm_s > 4 * queue.quote(0.1, 0.0, NEVER).harm_s


def test_time_passes_in_the_queue_but_nothing_is_done_before_it_is_said() -> None:
    queue = PrefillQueue(step_s=0.25)
    first = queue.add(1000, 1.0, now_s=10.0)
    second = queue.add(2000, 2.0, now_s=10.0)
    assert queue.quote(9.0, 11.0, NEVER).wait_s == pytest.approx(2.0, abs=0.01)
    assert queue.quote(9.0, 60.0, NEVER).wait_s == pytest.approx(0.15, abs=0.01)
    queue.remove(second, 60.0)
    queue.remove(first, 60.0)
    assert queue.num_tokens == len(queue) == 0
    assert queue.quote(9.0, 60.0, NEVER).wait_s == 0.0


def test_random_lives_keep_the_accounts() -> None:
    rng, queue, now_s = random.Random(1), PrefillQueue(step_s=0.1), 0.0
    waiting: list[Queued] = []
    for _ in range(500):
        now_s += rng.expovariate(4)
        if waiting and rng.random() < 0.5:
            queue.remove(waiting.pop(rng.randrange(len(waiting))), now_s)
        else:
            num_tokens = rng.randrange(1, 2000)
            waiting.append(queue.add(num_tokens, num_tokens / 1000, now_s))
        quote = queue.quote(1.0, now_s, 1.0)
        left_s = sum(each.left_s for each in waiting)
        assert 0.0 <= quote.wait_s <= left_s + 1e-6
        assert quote.harm_s >= 0.0
        assert queue.num_tokens == sum(each.num_tokens for each in waiting)
        assert queue.ends_s() == pytest.approx(now_s + left_s if waiting else 0.0)


def test_short_prompts_keep_out_of_the_way_of_a_long_one() -> None:
    """Though both would be as fast behind it."""
    decode, prefill = [pool("d")], [pool("p0", Role.PREFILL), pool("p1", Role.PREFILL)]
    prefill[0].enqueue(4000, 4.0, now_s=0.0)
    prefill[1].enqueue(100, 0.1, now_s=0.0)
    settings = PolicySettings(local_prefill=False)
    choice = choose(Demand(300, {PoolId("p0"): 0}), decode, prefill, settings, 0.0)
    assert choice is not None
    assert choice.prefill is prefill[1]


def test_what_other_routers_sent_is_ahead_too() -> None:
    decode, prefill = [pool("d")], [pool("p0", Role.PREFILL), pool("p1", Role.PREFILL)]
    prefill[0].note_elsewhere(InFlight(2, 3000))
    choice = choose(Demand(2000, {}), decode, prefill, PolicySettings(), 0.0)
    assert choice is not None
    assert choice.prefill is prefill[1]
