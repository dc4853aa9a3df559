"""Calls into another process: answers, errors, and its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cluster.call_pipe import CallPipe, Lost
from baton.errors import Internal, Unavailable


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[CallPipe]:
    started = CallPipe("tests.fake_ray_driver", dict(os.environ), tmp_path / "log")
    yield started
    started.end(10.0)


def test_answers_and_errors_come_back_while_others_wait(pipe: CallPipe) -> None:
    assert pipe.call("pid").result(30) == pipe.pid
    waiting = pipe.call("sleep")
    with pytest.raises(Unavailable, match="no luck") as error:
        pipe.call("raises", "no luck").result(30)
    assert error.value.field == "its field"
    with pytest.raises(Internal, match="not one of ours"):
        pipe.call("breaks").result(30)
    assert not waiting.done()


def test_its_end_is_told_to_all_that_wait_and_to_all_that_ask_later(pipe: CallPipe) -> None:
    assert pipe.call("pid").result(30)
    waiting = [pipe.call("sleep") for _ in range(3)]
    os.kill(pipe.pid, signal.SIGKILL)
    for each in (*waiting, pipe.call("pid")):
        with pytest.raises(Lost):
            each.result(30)


def test_a_call_that_was_given_up_harms_no_other(pipe: CallPipe) -> None:
    given_up = pipe.call("pid")
    given_up.cancel()
    assert pipe.call("pid").result(30) == pipe.pid
