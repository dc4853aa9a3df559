"""What the router keeps of requests that ended."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest

from baton.errors import Unavailable
from baton.types import FinishReason, HandOffReport
from router.request_life import RequestLife
from router.telemetry.request_log import RequestLog
from tests.unit.lives import make_life


class Prompt(list[int]):
    """One that says whether anybody still holds it."""


def log_one(log: RequestLog) -> weakref.ref[Prompt]:
    life = make_life()
    prompt = life.prompt_token_ids = Prompt(range(100))
    with log.recording(life):
        assert log.newest(1)[0].state == "waiting"
    return weakref.ref(prompt)


def test_a_request_that_ended_leaves_its_account_and_none_of_its_tokens() -> None:
    told: list[str] = []

    def tell(life: RequestLife) -> None:
        told.append(life.request_id)

    log = RequestLog(2, [tell])
    prompt = log_one(log)
    gc.collect()
    assert prompt() is None
    (account,) = log.newest(10)
    assert account.request_id == told[0] == "r-1"
    assert account.usage.num_prompt_tokens == 100
    assert account.timeline.events == {"received": 0.0}


def test_it_keeps_so_many_newest_first_and_how_they_ended() -> None:
    log = RequestLog(2, [])
    log_one(log)
    with pytest.raises(Unavailable), log.recording(make_life()):
        raise Unavailable("gone")
    log_one(log)
    assert [account.state for account in log.newest(10)] == ["cancelled", "unavailable"]
    assert len(log.newest(1)) == 1


def test_a_client_that_hangs_up_with_everything_in_hand_has_cancelled_nothing() -> None:
    """A generator that is closed at its last message ends so."""
    log = RequestLog(2, [])
    for reason in (None, FinishReason.LENGTH):
        life = make_life()
        life.samples[0].finish_reason = reason
        with pytest.raises(GeneratorExit), log.recording(life):
            raise GeneratorExit
    assert [account.state for account in log.newest(2)] == ["length", "cancelled"]


def test_what_either_worker_had_cached_is_counted() -> None:
    """A prompt that ends with the token that its prefill worker drew is cached there alone."""
    life = make_life()
    life.hand_off = HandOffReport("p", 0, 0.0, 0.0, num_prefill_cached_tokens=64)
    assert life.usage().num_cached_tokens == 64
    assert life.timeline().num_computed_tokens == 36
    life.num_cached_tokens = 80
    assert life.usage().num_cached_tokens == 80
    life.hand_off = replace(life.hand_off, num_prefill_cached_tokens=128)
    assert life.usage().num_cached_tokens == 100, "forced tokens are not the prompt's"
