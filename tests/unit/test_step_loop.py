"""The engine's thread, with the decode role on a fake engine: what ends a request, and what the worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from baton.errors import BatonError, Internal, Unavailable
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.step_plan import StepOutput, StepPlan
from baton.types import SamplingParams
from baton.worker.step_loop import StepLoop
from decode_worker.messages import Commands, Event, LendOver, Start
from decode_worker.scheduler import Scheduler, SchedulerLimits
from decode_worker.state_machine import DecodeRequests
from tests.fake_runner import FakeRunner, expected_output

VOCAB, NUM_BLOCKS, WITHIN_S = 100, 32, 10


class Runner(FakeRunner):
    """Every step waits at `gate`, and says `at_gate` when it is there."""

    def __init__(self) -> None:
        super().__init__(NUM_BLOCKS, 4, VOCAB)
        self.gate, self.at_gate = threading.Event(), threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def run(self, plan: StepPlan) -> StepOutput:
        self.at_gate.set()
        assert self.gate.wait(WITHIN_S)
        if self.error is not None:
            raise self.error
        return super().run(plan)


class Scheduler13(Scheduler):
    """Cannot take a prompt that begins with token 13, and finds out when half of it is done."""

    def add(self, sample, siblings=()) -> None:  # type: ignore[no-untyped-def]
        super().add(sample, siblings)
        if sample.token_ids[0] == 13:
            raise ZeroDivisionError("13")


class Worker:
    """A step loop, and what its requests got."""

    def __init__(self) -> None:
        self.runner = Runner()
        limits = SchedulerLimits(max_model_len=4 * NUM_BLOCKS)
        role = DecodeRequests(Scheduler13(BlockManager(NUM_BLOCKS, 4), limits), VOCAB)
        self.role = role
        self.failure: BaseException | None = None
        self.tokens: dict[int, list[int]] = {}
        self.errors: dict[int, BatonError | None] = {}
        self._news = threading.Condition()
        self.loop: StepLoop[Event, Commands] = StepLoop(role, self.runner, self._take, self._fail)

    def start(self, number: int, prompt: list[int], **params: int) -> None:
        wanted = SamplingParams(max_tokens=5, ignore_eos=True, **params)  # type: ignore[arg-type]
        self.loop.post(Start((1, number), f"r{number}", 1, prompt, (), wanted, (), b"s"))

    def last_word(self, number: int) -> BatonError | None:
        with self._news:
            assert self._news.wait_for(lambda: number in self.errors, WITHIN_S)
            return self.errors[number]

    def ask_integrity(self) -> None:
        self.loop.ask(self.role.scheduler.check_integrity).result(WITHIN_S)

    def _take(self, commands: Commands) -> None:
        with self._news:
            for outbox in commands.outboxes.values():
                for number, token in zip(outbox.keys, outbox.token_ids, strict=True):
                    self.tokens.setdefault(number, []).append(token)
                self.errors |= {each.number: each.error for each in outbox.finished}
            self._news.notify_all()

    def _fail(self, error: BaseException) -> None:
        self.failure = error


@pytest.fixture
def worker() -> Iterator[Worker]:
    with running(Worker()) as worker:
        yield worker


@contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    worker.loop.start()
    try:
        yield worker
    finally:
        worker.runner.gate.set()
        worker.loop.stop()


def test_a_question_that_was_taken_back_ends_nothing(worker: Worker) -> None:
    worker.runner.gate.clear()
    worker.start(1, [1, 2, 3])
    assert worker.runner.at_gate.wait(WITHIN_S)
    asked: list[int] = []
    questions = [worker.loop.ask(lambda: asked.append(1)) for _ in range(2)]
    assert questions[0].cancel(), "its client has gone while a step ran"
    worker.runner.gate.set()
    questions[1].result(WITHIN_S)
    assert worker.last_word(1) is None
    assert asked == [1]
    assert worker.failure is None


def test_an_event_that_fails_costs_its_request_alone(worker: Worker) -> None:
    worker.runner.gate.clear()
    worker.start(1, [1, 2, 3])
    assert worker.runner.at_gate.wait(WITHIN_S)
    worker.start(2, [13, 13, 13])
    worker.start(3, [4, 5])
    worker.runner.gate.set()
    assert isinstance(worker.last_word(2), Internal)
    assert worker.last_word(1) is None
    assert worker.last_word(3) is None
    assert worker.tokens[1] == expected_output([1, 2, 3], 0, 5, VOCAB)
    assert worker.tokens[3] == expected_output([4, 5], 0, 5, VOCAB)
    assert 2 not in worker.tokens
    worker.ask_integrity()
    assert worker.failure is None


def test_an_event_about_no_request_that_fails_is_the_engines_fault(worker: Worker) -> None:
    worker.runner.gate.clear()
    worker.start(1, [1, 2, 3])
    assert worker.runner.at_gate.wait(WITHIN_S)
    worker.loop.post(LendOver(7))  # of a loan that nobody has
    worker.runner.gate.set()
    assert type(worker.last_word(1)) is Unavailable
    worker.loop.stop()
    assert worker.failure is not None


def test_requests_of_a_broken_engine_are_told_to_go_on_elsewhere(worker: Worker) -> None:
    worker.runner.error = RuntimeError("the device is gone")
    worker.start(1, [1, 2, 3])
    assert type(worker.last_word(1)) is Unavailable
    worker.loop.stop()
    assert worker.failure is worker.runner.error
    with pytest.raises(Unavailable):
        worker.ask_integrity()
