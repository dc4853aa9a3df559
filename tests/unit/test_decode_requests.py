"""The decode role without a process: random lives of random requests on pools that are too small."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest

from baton.errors import Cancelled, DeadlineExceeded, Draining, Internal, InvalidArgument
from baton.scheduling.block_manager import BlockManager
from baton.types import FinishReason, SamplingParams
from decode_worker.messages import Cancel, Commands, Key, Outbox, RouterLost, Start, Unreadable
from decode_worker.scheduler import Scheduler, SchedulerLimits
from decode_worker.state_machine import DecodeRequests
from tests.fake_runner import FakeRunner, expected_output

VOCAB = 100


class World:
    """A decode role on a fake engine, with everything it ever said."""

    def __init__(self, num_blocks: int, block_size: int = 4, **limits: float) -> None:
        self.runner = FakeRunner(num_blocks, block_size, VOCAB)
        self.blocks = BlockManager(num_blocks, block_size)
        settings = {"max_running": 8, "max_chunk_tokens": 16, "min_chunk_tokens": 4, **limits}
        settings.setdefault("max_model_len", num_blocks * block_size)
        self.scheduler = Scheduler(self.blocks, SchedulerLimits(**settings))  # type: ignore[arg-type]
        self.role = DecodeRequests(self.scheduler, VOCAB)
        self.now_s = 0.0
        self.tokens: dict[tuple[Key, int], list[int]] = defaultdict(list)
        self.reasons: dict[tuple[Key, int], FinishReason] = {}
        self.finished: dict[Key, object] = {}
        self.num_preemptions = 0

    def start(self, key: Key, prompt: list[int], max_tokens: int, **more: object) -> None:
        params = SamplingParams(
            max_tokens=max_tokens, n=int(str(more.pop("n", 1))), ignore_eos=True
        )
        fields = {"output_token_ids": (), "eos_token_ids": (), "salt": b"s", **more}
        event = Start(key, f"r{key}", 0, prompt, params=params, **fields)  # type: ignore[arg-type]
        self.role.handle(event, self.now_s)
        self.collect()

    def step(self) -> bool:
        self.now_s += 0.01
        plan = self.role.schedule(self.now_s)
        if plan is not None:
            self.role.update(plan, self.runner.run(plan), self.now_s)
        self.collect()
        self.scheduler.check_integrity()
        return plan is not None

    def run(self) -> None:
        while self.step():
            pass

    def collect(self) -> None:
        self.obey(self.role.take_commands())

    def obey(self, commands: Commands) -> None:
        for router, outbox in commands.outboxes.items():
            self.absorb(router, outbox)

    def absorb(self, router: int, outbox: Outbox) -> None:
        columns = zip(outbox.keys, outbox.sample_indices, outbox.token_ids, strict=True)
        for number, index, token in columns:
            assert (router, number) not in self.finished, "a token after the last word"
            self.tokens[(router, number), index].append(token)
        for ended in outbox.ended_samples:
            self.reasons[(router, ended.number), ended.sample_index] = ended.reason
        for finished in outbox.finished:
            assert (router, finished.number) not in self.finished, "two last words"
            self.finished[router, finished.number] = finished.error
            self.num_preemptions += finished.num_preemptions

    def assert_nothing_held(self) -> None:
        self.scheduler.check_integrity()
        assert self.blocks.counts().held == 0
        assert self.role.num_requests == 0


def test_tokens_are_those_of_the_model_and_the_prompt_is_chunked() -> None:
    world = World(num_blocks=64)
    prompt = list(range(50))
    world.start((1, 1), prompt, max_tokens=10)
    world.run()
    assert world.tokens[(1, 1), 0] == expected_output(prompt, 0, 10, VOCAB)
    assert world.reasons[(1, 1), 0] is FinishReason.LENGTH
    assert world.finished[1, 1] is None
    world.assert_nothing_held()


def test_samples_of_one_prompt_part_on_copied_blocks() -> None:
    world = World(num_blocks=64)
    prompt = list(range(18))  # its last block is partial
    world.start((1, 1), prompt, max_tokens=9, n=3)
    world.run()
    for index in range(3):
        assert world.tokens[(1, 1), index] == expected_output(prompt, index, 9, VOCAB)
    world.assert_nothing_held()


def test_a_second_prompt_with_the_same_start_computes_only_the_rest() -> None:
    world = World(num_blocks=64)
    prompt = list(range(41))
    world.start((1, 1), prompt, max_tokens=3)
    world.run()
    world.start((1, 2), [*prompt[:32], 7, 8, 9], max_tokens=3)
    plan = world.role.schedule(world.now_s)
    assert plan is not None
    assert [(piece.start, piece.end) for piece in plan.slices] == [(32, 35)]


def test_a_continuation_goes_on_with_the_next_token() -> None:
    world = World(num_blocks=64)
    prompt = list(range(10))
    whole = expected_output(prompt, 0, 12, VOCAB)
    world.start((1, 1), prompt, max_tokens=12, output_token_ids=[whole[:5]])
    world.run()
    assert world.tokens[(1, 1), 0] == whole[5:]


def test_a_continuation_that_is_complete_ends_without_a_step() -> None:
    world = World(num_blocks=64)
    world.start((1, 1), [1, 2], max_tokens=2, output_token_ids=[[3, 4]])
    assert world.reasons[(1, 1), 0] is FinishReason.LENGTH
    assert world.finished == {(1, 1): None}
    assert not world.step()


@pytest.mark.parametrize("seed", range(20))
def test_random_lives_on_a_tiny_pool(seed: int) -> None:
    rng = random.Random(seed)
    world = World(num_blocks=rng.choice([12, 17, 24]), max_running=rng.choice([2, 5, 8]))
    stems = [[rng.randrange(VOCAB) for _ in range(20)] for _ in range(3)]
    asked: dict[Key, tuple[list[int], int, int]] = {}
    cancelled: set[Key] = set()
    for number in range(60):
        key = (rng.randrange(2), number)
        prompt = [*rng.choice(stems)[: rng.randrange(1, 20)], rng.randrange(VOCAB)]
        n, max_tokens = rng.choice([1, 1, 1, 3]), rng.randrange(1, 24)
        world.start(key, prompt, max_tokens, n=n, priority=rng.randrange(2))
        asked[key] = (prompt, n, max_tokens)
        for _ in range(rng.randrange(4)):
            world.step()
        if rng.random() < 0.2:
            victim = rng.choice(list(asked))
            if victim not in world.finished:
                cancelled.add(victim)
            world.role.handle(Cancel(victim), world.now_s)
            world.collect()
            world.scheduler.check_integrity()
    world.run()
    assert set(world.finished) == set(asked)
    for key, (prompt, n, max_tokens) in asked.items():
        assert isinstance(world.finished[key], Cancelled) == (key in cancelled)
        for index in range(n):
            whole = expected_output(prompt, index, max_tokens, VOCAB)
            got = world.tokens[key, index]
            assert got == (whole[: len(got)] if key in cancelled else whole)
    world.assert_nothing_held()


def test_a_pool_that_is_too_small_preempts() -> None:
    world = World(num_blocks=10, max_model_len=40)
    for number in range(4):
        world.start((1, number), [number] * 8, max_tokens=24)
    world.run()
    assert world.num_preemptions > 0
    for number in range(4):
        assert world.tokens[(1, number), 0] == expected_output([number] * 8, 0, 24, VOCAB)
    world.assert_nothing_held()


def test_the_more_urgent_request_keeps_its_blocks() -> None:
    world = World(num_blocks=10, max_model_len=40)
    world.start((1, 1), [1] * 8, max_tokens=24, priority=0)
    world.start((1, 2), [2] * 8, max_tokens=24, priority=5)
    order: list[Key] = []
    while world.step():
        order += [key for key in world.finished if key not in order]
    assert order == [(1, 2), (1, 1)]


def test_a_deadline_ends_a_request_wherever_it_is() -> None:
    world = World(num_blocks=64)
    world.start((1, 1), [1, 2, 3], max_tokens=1000, deadline_s=0.1)
    world.run()
    assert isinstance(world.finished[1, 1], DeadlineExceeded)
    assert 5 < len(world.tokens[(1, 1), 0]) < 15
    world.assert_nothing_held()


def test_requests_of_a_lost_router_are_dropped_and_others_go_on() -> None:
    world = World(num_blocks=64)
    world.start((1, 1), [1, 2, 3], max_tokens=5)
    world.start((2, 1), [4, 5, 6], max_tokens=5)
    world.step()
    world.role.handle(RouterLost(1), world.now_s)
    world.run()
    assert (1, 1) not in world.finished
    assert world.tokens[(2, 1), 0] == expected_output([4, 5, 6], 0, 5, VOCAB)
    world.assert_nothing_held()


def test_refusals_start_nothing() -> None:
    world = World(num_blocks=8, max_model_len=32)
    world.start((1, 1), list(range(33)), max_tokens=1)
    world.start((1, 2), [], max_tokens=1)
    world.role.start_draining()
    world.start((1, 3), [1], max_tokens=1)
    assert isinstance(world.finished[1, 1], InvalidArgument)
    assert isinstance(world.finished[1, 2], InvalidArgument)
    assert isinstance(world.finished[1, 3], Draining)
    assert not world.step()
    world.assert_nothing_held()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt_token_ids": [1, VOCAB]}, "prompt_token_ids"),
        ({"output_token_ids": [[VOCAB]]}, "output_token_ids"),
        ({"output_token_ids": [[1], [2]]}, "output_token_ids"),
        ({"salt": bytes(65)}, "salt"),
        ({"deadline_s": math.nan}, "timeout_s"),
        ({"params": SamplingParams(max_tokens=1, n=2**31), "output_token_ids": ()}, "sampling.n"),
        ({"params": SamplingParams(max_tokens=1, repetition_penalty=1e-40)}, "sampling.repe"),
        ({"params": SamplingParams(max_tokens=1, temperature=math.nan)}, "sampling.temperature"),
        ({"params": SamplingParams(max_tokens=1, logit_bias={VOCAB: 1.0})}, "sampling.logit_bias"),
    ],
)
def test_what_a_router_should_not_have_let_pass_is_refused(
    change: dict[str, Any], field: str
) -> None:
    world = World(num_blocks=8)
    world.start((1, 1), [1, 2], max_tokens=2)
    good = Start((1, 2), "r", 0, [1], [[1]], SamplingParams(max_tokens=1), (), b"s")
    world.role.handle(replace(good, **change), world.now_s)
    world.run()
    error = world.finished[1, 2]
    assert isinstance(error, InvalidArgument)
    assert error.field.startswith(field)
    assert world.finished[1, 1] is None
    world.assert_nothing_held()


def test_what_cannot_be_understood_ends_the_request_that_it_names() -> None:
    world = World(num_blocks=8)
    world.start((1, 1), [1, 2], max_tokens=2)
    world.start((1, 2), [3, 4], max_tokens=2)
    for number in (2, 3):  # one that runs, one that could not be started
        world.role.handle(Unreadable((1, number), InvalidArgument("what?")), world.now_s)
    world.run()
    assert world.finished[1, 1] is None
    assert isinstance(world.finished[1, 2], InvalidArgument)
    assert isinstance(world.finished[1, 3], InvalidArgument)
    world.assert_nothing_held()


def test_what_a_step_cannot_do_for_a_sample_ends_its_request_alone() -> None:
    world = World(num_blocks=64)
    prompts = {number: [10 * number + i for i in range(5)] for number in range(1, 6)}
    for number, prompt in prompts.items():
        world.start((1, number), prompt, max_tokens=6, n=2)
    error = Internal("NaN")
    for fault in ("not computed", "no log-probabilities", "no draw"):
        plan = world.role.schedule(world.now_s)
        assert plan is not None
        if fault == "not computed":
            nothing = world.runner.run(replace(plan, slices=()))
            output = replace(nothing, failed_slices={0: error}, computed=False)
        elif fault == "no log-probabilities":
            output = replace(world.runner.run(plan), failed_slices={0: error})
        else:
            whole = world.runner.run(plan)
            bad = whole.drawn[1].handle
            drawn = [each for each in whole.drawn if each.handle != bad]
            output = replace(whole, drawn=drawn, failed=[(bad, error)])
        world.role.update(plan, output, world.now_s)
        world.collect()
        world.scheduler.check_integrity()
    world.run()
    ended = [number for number in prompts if world.finished[1, number] is error]
    assert len(ended) == 3
    for number in prompts.keys() - set(ended):
        for index in (0, 1):
            whole_output = expected_output(prompts[number], index, 6, VOCAB)
            assert world.tokens[(1, number), index] == whole_output
    world.assert_nothing_held()
