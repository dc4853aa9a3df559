"""How often a benchmark repeats itself in the time it has."""

from __future__ import annotations

from baton.bench.rounds import RoundLimits, Steps, rounds


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def lengths_run(durations_s: list[float], *, least: int, until_s: float) -> int:
    """How many of the rounds, which would last so long, are begun."""
    clock = Clock()
    done = 0
    for index in rounds(RoundLimits(least, len(durations_s), until_s, clock)):
        clock.now_s += durations_s[index]
        done += 1
    return done


def test_all_rounds_where_there_is_time() -> None:
    assert lengths_run([1.0] * 5, least=1, until_s=5.0) == 5


def test_no_round_begins_that_would_end_too_late() -> None:
    assert lengths_run([1.0] * 9, least=1, until_s=4.5) == 4
    assert lengths_run([1.0, 3.0, 1.0, 1.0], least=1, until_s=6.9) == 2


def test_the_least_rounds_run_whatever_the_time() -> None:
    assert lengths_run([10.0] * 9, least=3, until_s=1.0) == 3
    assert lengths_run([10.0] * 2, least=3, until_s=1.0) == 2


def test_steps_are_counted_as_they_end() -> None:
    told: list[tuple[str, int, int]] = []
    steps = Steps(3, lambda *step: told.append(step))
    steps.end("one")
    steps.total -= 1
    steps.end("two")
    assert told == [("one", 1, 3), ("two", 2, 2)]
