"""Reconcile: what is wanted and what is known go in, actions come out."""

from __future__ import annotations

import pytest

from baton.cluster import reconcile
from baton.cluster.reconcile import Drain, Forget, Instance, Kill, Limits, Phase, Start
from baton.errors import Unavailable

LIMITS = Limits(start_s=60, silent_s=5, drain_s=30, stable_s=2, backoff_s=0.25, max_backoff_s=4)
LOST = Unavailable("lost")


def due(*instances: Instance, wanted: tuple[str, ...] = ("d",), now_s: float) -> list[object]:
    known = {each.name: each for each in instances}
    return list(reconcile.reconcile(wanted, known, now_s, LIMITS))


def running(now_s: float = 0.0) -> Instance:
    return reconcile.answered(reconcile.started("d", None, now_s), now_s)


def test_what_is_wanted_and_not_there_is_started() -> None:
    assert due(wanted=("p", "d"), now_s=0) == [Start("p"), Start("d")]
    assert due(reconcile.started("d", None, 0), wanted=("p", "d"), now_s=1) == [Start("p")]


def test_what_runs_as_wanted_is_left_alone() -> None:
    assert due(running(), now_s=1000) == []
    assert due(reconcile.answered(running(), 100), now_s=1000) == []


def test_a_start_that_takes_too_long_is_killed() -> None:
    starting = reconcile.started("d", None, 10)
    assert due(starting, now_s=70) == []
    assert due(starting, now_s=70.1) == [Kill("d", "was not ready after 60 s")]


def test_silence_is_a_reason_to_kill_and_an_answer_ends_it() -> None:
    silent = reconcile.asked_in_vain(reconcile.asked_in_vain(running(), 100), 104)
    assert due(silent, now_s=105) == []
    assert due(silent, now_s=105.1) == [Kill("d", "has not answered for 5 s")]
    assert due(reconcile.answered(silent, 104), now_s=1000) == []


def test_one_that_starts_may_be_silent() -> None:
    starting = reconcile.asked_in_vain(reconcile.started("d", None, 0), 1)
    assert due(starting, now_s=59) == []
    assert due(reconcile.answered(starting, 59), now_s=100) == []


def test_what_is_not_wanted_any_more_drains_and_is_forgotten() -> None:
    assert due(running(), wanted=(), now_s=1) == [Drain("d")]
    leaving = reconcile.draining(running(), 1)
    assert due(leaving, wanted=(), now_s=31) == []
    assert due(leaving, wanted=(), now_s=31.1) == [Kill("d", "did not leave within 30 s")]
    assert due(reconcile.ended(leaving, None, 2, LIMITS), wanted=(), now_s=2) == [Forget("d")]


def test_one_that_has_nothing_to_drain_is_killed() -> None:
    starting = reconcile.started("d", None, 0)
    assert due(starting, wanted=(), now_s=1) == [Kill("d", "is wanted no more")]


def test_the_first_restart_is_immediate_and_the_following_wait_ever_longer() -> None:
    """It dies as soon as it is up, again and again."""
    now_s, instance, waits = 0.0, running(), []
    for _ in range(8):
        now_s += 0.125
        instance = reconcile.ended(instance, LOST, now_s, LIMITS)
        waited_s = 0.0
        while not due(instance, now_s=now_s + waited_s):
            waited_s += 0.25
        waits.append(waited_s)
        now_s += waited_s
        instance = reconcile.answered(reconcile.started("d", instance, now_s), now_s)
    assert waits == [0, 0.25, 0.5, 1, 2, 4, 4, 4]


def test_having_run_for_a_while_earlier_failures_are_forgotten() -> None:
    instance = running()
    for now_s in (1.0, 1.5):
        instance = reconcile.ended(instance, LOST, now_s, LIMITS)
        instance = reconcile.answered(reconcile.started("d", instance, now_s), now_s)
    assert instance.num_failures == 2
    died = reconcile.ended(instance, LOST, 1.5 + LIMITS.stable_s, LIMITS)
    assert due(died, now_s=1.5 + LIMITS.stable_s) == [Start("d")]


def test_one_that_left_in_order_is_started_at_once() -> None:
    left = reconcile.ended(reconcile.draining(running(), 1), None, 2, LIMITS)
    assert left.num_failures == 0
    assert due(left, now_s=2) == [Start("d")]


def test_why_it_ended_is_known_until_it_serves_again() -> None:
    died = reconcile.ended(running(), LOST, 1, LIMITS)
    again = reconcile.started("d", died, 1)
    assert (again.phase, again.error) == (Phase.STARTING, LOST)
    assert reconcile.answered(again, 2).error is None


@pytest.mark.parametrize("num_failures", [10, 1000, 10**6])
def test_waiting_is_capped_however_often_it_fails(num_failures: int) -> None:
    assert LIMITS.restart_after_s(num_failures) == LIMITS.max_backoff_s
