"""Prompt log-probabilities on their way through the router: there may be a million."""

from __future__ import annotations

from typing import Any

from baton import convert
from baton.types import PositionLogprobs
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.frontend import PromptLogprobs
from router.gate import Gate
from router.http.choices import Choice, Collected
from router.intake import Intake
from router.models import Models
from router.routing.pools import Pools
from router.workers.decode_stream import LegUpdate
from tests.unit.lives import make_life

POSITIONS = tuple(PositionLogprobs(i, -1.0, 1, ((i, -1.0), (7, -2.0))) for i in range(1_000))
NOBODY: Any = None


def update(positions: tuple[PositionLogprobs, ...]) -> LegUpdate:
    return LegUpdate(prompt_logprobs=[convert.logprobs_to_proto(each) for each in positions])


def test_they_are_passed_on_a_few_at_a_time_and_each_once() -> None:
    intake = Intake(Models({}, Pools()))
    dispatcher = Dispatcher(RouterConfig(), intake, NOBODY, NOBODY, Gate(), NOBODY)
    life = make_life()
    pieces = list(dispatcher._fresh_prompt_logprobs(life, update(POSITIONS[:600])))
    assert max(map(len, pieces)) <= 64
    life.num_prompt_logprobs_seen = 0  # another attempt computes them again
    pieces += dispatcher._fresh_prompt_logprobs(life, update(POSITIONS))
    assert [position for piece in pieces for position in piece] == list(POSITIONS)


def test_an_http_answer_shows_those_of_all_messages_with_every_sample() -> None:
    collected = Collected([Choice(index) for index in range(4)])
    for first in range(0, 1_000, 100):
        collected.add(1, PromptLogprobs(POSITIONS[first : first + 100]), n=2)
    shown = [choice.prompt_logprobs for choice in collected.choices]
    assert shown == [None, None, list(POSITIONS), list(POSITIONS)]
