"""The decode role with prompts computed elsewhere, without a process: a prefill worker that is slow, fails,
is lost, and writes late into blocks that nobody gave back to it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from baton.errors import InvalidArgument, Unavailable
from baton.types import FinishReason, HandOffReport, PoolId, PositionLogprobs, PrefillChoice
from decode_worker.messages import (
    Abandon,
    AskPrefill,
    Cancel,
    Commands,
    Fenced,
    FirstToken,
    FirstTokens,
    HandOffDone,
    HandOffFailed,
    Key,
    PrefillAccount,
    Reroute,
)
from tests.fake_runner import expected_output, next_token
from tests.unit.test_decode_requests import VOCAB, World

P = PrefillChoice(PoolId("p"), 1, "127.0.0.1:1")
Asked = dict[Key, tuple[list[int], int, int]]  # prompt, n, max_tokens
REPORT = HandOffReport("p", 1, 0.1, 0.0, 0)
ACCOUNT = PrefillAccount(
    HandOffReport("p", 0, 0.0, 0.0, 4), {"prefill_start": 0.25, "prefill_end": 0.5}
)


class RemoteWorld(World):
    """A decode role whose prefill worker is this object; `asked` are its open transfers."""

    def __init__(self, num_blocks: int, **limits: float) -> None:
        super().__init__(num_blocks, 4, **limits)
        self.asked: dict[int, AskPrefill] = {}
        self.abandoned: dict[int, AskPrefill] = {}
        self.all_asked: dict[int, AskPrefill] = {}
        self.lost: list[int] = []

    def obey(self, commands: Commands) -> None:
        for router, outbox in commands.outboxes.items():
            self.lost += [number for number, *_ in outbox.prefill_lost]
            self.absorb(router, outbox)
        for order in commands.orders:
            match order:
                case AskPrefill(transfer):
                    self.asked[transfer] = self.all_asked[transfer] = order
                case Abandon(transfer):
                    self.asked.pop(transfer, None)
                    self.abandoned[transfer] = self.all_asked[transfer]
        self.scheduler.check_integrity()

    def write(self, ask: AskPrefill, num_tokens: int) -> None:
        """The KV of positions [0, num_tokens) that lie in the destination blocks."""
        for position in range(ask.first_block * self.blocks.block_size, num_tokens):
            index, offset = divmod(position, self.blocks.block_size)
            block = ask.destination_blocks[index - ask.first_block]
            self.runner.kv[block, offset] = ask.token_ids[position]

    def scribble(self, ask: AskPrefill) -> None:
        """A late write: what a stopped writer does when it wakes up."""
        for block in ask.destination_blocks:
            for offset in range(self.blocks.block_size):
                self.runner.kv[block, offset] = -1

    def draw(self, ask: AskPrefill) -> list[FirstToken]:
        return [
            FirstToken(index, next_token(list(ask.token_ids), index, VOCAB))
            for index in range(ask.params.n)
        ]

    def complete(self, transfer: int) -> None:
        ask = self.asked.pop(transfer)
        self.role.handle(FirstTokens(transfer, self.draw(ask), (), ACCOUNT), self.now_s)
        self.collect()
        if transfer in self.abandoned:
            return  # the first token ended it
        self.write(ask, len(ask.token_ids))
        self.role.handle(HandOffDone(transfer, REPORT, {}), self.now_s)
        self.collect()

    def fail(self, transfer: int, rng: random.Random) -> None:
        """Some of it arrived, perhaps the first token, perhaps with proof that nothing follows."""
        ask = self.asked.pop(transfer)
        if rng.random() < 0.5:
            self.role.handle(FirstTokens(transfer, self.draw(ask), (), ACCOUNT), self.now_s)
            self.collect()
        if transfer in self.abandoned:
            return
        num_verified = rng.randrange(len(ask.token_ids) + 1)
        self.write(ask, num_verified)
        # Whoever writes late writes what had not been verified: every block is written once.
        self.all_asked[transfer] = unverified(ask, num_verified // self.blocks.block_size)
        fenced = rng.random() < 0.5
        failed = HandOffFailed(transfer, Unavailable("gone"), num_verified, fenced)
        self.role.handle(failed, self.now_s)
        self.collect()

    def fence_all(self) -> None:
        for transfer in list(self.abandoned):
            del self.abandoned[transfer]
            self.role.handle(Fenced(transfer), self.now_s)
        self.collect()


def unverified(ask: AskPrefill, num_blocks: int) -> AskPrefill:
    """`ask` without its blocks below logical block `num_blocks`."""
    num_done = max(0, num_blocks - ask.first_block)
    return replace(
        ask,
        first_block=ask.first_block + num_done,
        destination_blocks=ask.destination_blocks[num_done:],
    )


def test_the_prompt_is_computed_elsewhere_and_decode_goes_on_here() -> None:
    world = RemoteWorld(num_blocks=64)
    prompt = list(range(30))
    world.start((1, 1), prompt, max_tokens=8, prefill=P)
    (ask,) = world.asked.values()
    assert ask.token_ids == prompt
    assert ask.first_block == 0
    assert len(ask.destination_blocks) == 8
    assert not world.step(), "nothing is computed here meanwhile"
    world.complete(ask.transfer)
    plan = world.role.schedule(world.now_s)
    assert plan is not None
    assert [(piece.start, piece.end) for piece in plan.slices] == [(30, 31)]
    world.role.update(plan, world.runner.run(plan), world.now_s)
    world.collect()
    world.run()
    assert world.tokens[(1, 1), 0] == expected_output(prompt, 0, 8, VOCAB)
    world.assert_nothing_held()


def test_only_the_missing_blocks_are_asked_for() -> None:
    world = RemoteWorld(num_blocks=64)
    prompt = list(range(30))
    world.start((1, 1), prompt, max_tokens=2)
    world.run()
    world.start((1, 2), [*prompt, 1, 2, 3], max_tokens=2, prefill=P)
    (ask,) = world.asked.values()
    assert ask.first_block == 7
    assert len(ask.destination_blocks) == 2


def test_a_first_token_that_ends_the_request_fences_the_transfer() -> None:
    world = RemoteWorld(num_blocks=64)
    world.start((1, 1), [1, 2, 3, 4, 5], max_tokens=1, prefill=P)
    (ask,) = world.asked.values()
    world.role.handle(FirstTokens(ask.transfer, world.draw(ask), (), ACCOUNT), world.now_s)
    world.collect()
    assert world.finished == {(1, 1): None}
    assert world.reasons[(1, 1), 0] is FinishReason.LENGTH
    assert world.blocks.counts().quarantined == 2
    world.fence_all()
    assert world.blocks.counts().quarantined == 0
    world.assert_nothing_held()


def test_what_ends_before_its_blocks_are_here_tells_who_computed_its_prompt() -> None:
    world = RemoteWorld(num_blocks=64)
    world.start((1, 1), [1, 2, 3, 4, 5], max_tokens=1, prefill=P)
    (ask,) = world.asked.values()
    world.role.handle(FirstTokens(ask.transfer, world.draw(ask), (), ACCOUNT), world.now_s)
    (finished,) = world.role.take_commands().outboxes[1].finished
    assert finished.hand_off == ACCOUNT.report
    assert ACCOUNT.instants.items() <= finished.instants.items()


def test_who_computed_a_prompt_in_vain_is_not_told() -> None:
    world = RemoteWorld(num_blocks=64)
    world.start((1, 1), [1, 2, 3, 4, 5], max_tokens=2, prefill=P)
    (ask,) = world.asked.values()
    world.role.handle(FirstTokens(ask.transfer, world.draw(ask), (), ACCOUNT), world.now_s)
    world.role.handle(HandOffFailed(ask.transfer, Unavailable("gone"), 0, fenced=True), world.now_s)
    world.role.handle(Cancel((1, 1)), world.now_s)
    (finished,) = world.role.take_commands().outboxes[1].finished
    assert finished.hand_off is None
    assert not ACCOUNT.instants.keys() & finished.instants.keys()


def test_a_lost_prefill_worker_leaves_what_was_verified_and_another_goes_on() -> None:
    world = RemoteWorld(num_blocks=64)
    prompt = list(range(30))
    world.start((1, 1), prompt, max_tokens=8, prefill=P)
    (first,) = world.asked.values()
    world.write(first, 20)
    lost = HandOffFailed(first.transfer, Unavailable("gone"), num_verified=18, fenced=False)
    world.role.handle(lost, world.now_s)
    world.collect()
    assert world.lost == [1]
    assert world.blocks.counts().quarantined == 4
    world.role.handle(Reroute((1, 1), P), world.now_s)
    world.collect()
    second = list(world.asked.values())[-1]
    assert second.first_block == 4, "four full blocks were verified"
    assert not set(second.destination_blocks) & set(first.destination_blocks)
    world.scribble(unverified(first, num_blocks=4))
    world.complete(second.transfer)
    world.run()
    assert world.tokens[(1, 1), 0] == expected_output(prompt, 0, 8, VOCAB)
    world.fence_all()
    world.assert_nothing_held()


def test_without_another_prefill_worker_the_prompt_is_computed_here() -> None:
    world = RemoteWorld(num_blocks=64)
    prompt = list(range(30))
    world.start((1, 1), prompt, max_tokens=8, prefill=P)
    (ask,) = world.asked.values()
    world.role.handle(FirstTokens(ask.transfer, world.draw(ask), (), ACCOUNT), world.now_s)
    world.role.handle(HandOffFailed(ask.transfer, Unavailable("gone"), 0, fenced=True), world.now_s)
    world.role.handle(Reroute((1, 1), None), world.now_s)
    world.collect()
    world.run()
    assert world.tokens[(1, 1), 0] == expected_output(prompt, 0, 8, VOCAB), "no token twice"
    world.assert_nothing_held()


def test_what_is_wrong_with_the_request_itself_ends_it_and_nobody_else_is_asked() -> None:
    world = RemoteWorld(num_blocks=64)
    world.start((1, 1), list(range(30)), max_tokens=8, prefill=P)
    world.start((1, 2), list(range(30, 60)), max_tokens=8, prefill=P)
    first, second = world.asked.values()
    wrong = InvalidArgument("is not one of the vocabulary", field="token_ids")
    world.role.handle(HandOffFailed(first.transfer, wrong, 0, fenced=True), world.now_s)
    world.collect()
    assert world.finished == {(1, 1): wrong}
    assert not world.lost
    world.complete(second.transfer)
    world.run()
    assert world.finished[1, 2] is None
    world.assert_nothing_held()


def test_blocks_of_a_hand_off_that_completes_while_it_is_given_up_come_back() -> None:
    """The word that all is verified and the order to abandon it cross: nobody writes any more."""
    world = RemoteWorld(num_blocks=64)
    world.start((1, 1), list(range(30)), max_tokens=8, prefill=P)
    (ask,) = world.asked.values()
    world.role.handle(Cancel((1, 1)), world.now_s)
    world.collect()
    assert world.blocks.counts().quarantined == 8
    world.role.handle(HandOffDone(ask.transfer, REPORT, {}), world.now_s)
    world.assert_nothing_held()
    assert world.blocks.counts().quarantined == 0


def test_log_probabilities_of_the_prompt_are_said_once_however_many_prefill_workers_it_takes() -> (
    None
):
    world = RemoteWorld(num_blocks=64)
    prompt = list(range(30))
    world.start((1, 1), prompt, max_tokens=8, prefill=P)
    said = [PositionLogprobs(token, -1.0, 1) for token in prompt[1:]]
    heard: list[PositionLogprobs] = []
    for _ in range(2):
        (ask,) = world.asked.values()
        draws = world.draw(ask)
        world.role.handle(FirstTokens(ask.transfer, draws, said, ACCOUNT), world.now_s)
        for outbox in world.role.take_commands().outboxes.values():
            heard += [position for _, each in outbox.prompt_logprobs for position in each]
        world.asked.clear()
        lost = HandOffFailed(ask.transfer, Unavailable("gone"), num_verified=0, fenced=True)
        world.role.handle(lost, world.now_s)
        world.role.handle(Reroute((1, 1), P), world.now_s)
        world.collect()
    assert heard == said


def test_what_the_prefill_worker_could_not_draw_is_drawn_here() -> None:
    """Here with a foreign token for one sample, and none for the other."""
    world = RemoteWorld(num_blocks=64)
    prompt = list(range(30))
    world.start((1, 1), prompt, max_tokens=8, n=2, prefill=P)
    (ask,) = world.asked.values()
    foreign = [FirstToken(1, VOCAB)]
    world.role.handle(FirstTokens(ask.transfer, foreign, (), ACCOUNT), world.now_s)
    world.write(ask, len(prompt))
    world.role.handle(HandOffDone(ask.transfer, REPORT, {}), world.now_s)
    plan = world.role.schedule(world.now_s)
    assert plan is not None
    assert [(piece.start, piece.end) for piece in plan.slices] == [(28, 30)], "the last block alone"
    world.role.update(plan, world.runner.run(plan), world.now_s)
    world.run()
    for index in (0, 1):
        assert world.tokens[(1, 1), index] == expected_output(prompt, index, 8, VOCAB)
    assert world.finished == {(1, 1): None}
    world.assert_nothing_held()


@pytest.mark.parametrize("seed", range(25))
def test_random_lives_with_a_bad_prefill_worker(seed: int) -> None:
    rng = random.Random(seed)
    world = RemoteWorld(num_blocks=rng.choice([16, 24, 40]), max_running=rng.choice([3, 8]))
    stems = [[rng.randrange(VOCAB) for _ in range(20)] for _ in range(3)]
    asked: Asked = {}
    cancelled: set[Key] = set()
    for number in range(60):
        key = (1, number)
        prompt = [*rng.choice(stems)[: rng.randrange(1, 20)], rng.randrange(VOCAB)]
        n, max_tokens = rng.choice([1, 1, 3]), rng.randrange(1, 20)
        world.start(key, prompt, max_tokens, n=n, prefill=rng.choice([P, P, None]))
        asked[key] = (prompt, n, max_tokens)
        for _ in range(rng.randrange(5)):
            act(world, rng)
            world.step()
        if rng.random() < 0.15:
            victim = rng.choice(list(asked))
            if victim not in world.finished:
                cancelled.add(victim)
            world.role.handle(Cancel(victim), world.now_s)
            world.collect()
    finish(world, rng, asked, cancelled)


def test_a_copy_is_never_made_into_blocks_that_its_sample_has_given_back() -> None:
    """Samples that end with the token that parts them leave no copy behind for whoever comes next."""
    world = RemoteWorld(num_blocks=8)
    world.start((1, 1), list(range(6)), max_tokens=1, n=3)
    world.run()
    world.assert_nothing_held()
    prompt = list(range(50, 78))
    world.start((1, 2), prompt, max_tokens=4, prefill=P)
    (ask,) = world.asked.values()
    world.complete(ask.transfer)
    world.run()
    assert world.tokens[(1, 2), 0] == expected_output(prompt, 0, 4, VOCAB)
    world.assert_nothing_held()


@pytest.mark.parametrize("seed", range(15))
def test_random_copies_between_reservations_preemptions_and_cancels(seed: int) -> None:
    """Prompts whose samples part and end at once, on pools where every block soon belongs to another."""
    rng = random.Random(seed)
    world = RemoteWorld(num_blocks=rng.choice([9, 12, 16]), max_running=rng.choice([4, 8]))
    asked: Asked = {}
    cancelled: set[Key] = set()
    for number in range(80):
        key = (1, number)
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 24))]
        n, max_tokens = rng.choice([1, 2, 4]), rng.choice([1, 1, 2, 10])
        asked[key] = (prompt, n, max_tokens)
        world.start(key, prompt, max_tokens, n=n, prefill=rng.choice([P, None]))
        for _ in range(rng.randrange(4)):
            act(world, rng)
            world.step()
        if rng.random() < 0.3:
            victim = rng.choice([key for key in asked if key not in world.finished] or [key])
            cancelled.add(victim)
            world.role.handle(Cancel(victim, rng.choice([None, 0, 1])), world.now_s)
            world.collect()
    finish(world, rng, asked, cancelled)


def act(world: RemoteWorld, rng: random.Random) -> None:
    """One thing a prefill worker, or its death, may do."""
    if world.abandoned and rng.random() < 0.5:
        transfer = rng.choice(list(world.abandoned))
        world.scribble(world.abandoned.pop(transfer))
        world.role.handle(Fenced(transfer), world.now_s)
    if world.asked and rng.random() < 0.7:
        transfer = rng.choice(list(world.asked))
        if rng.random() < 0.6:
            world.complete(transfer)
        else:
            world.fail(transfer, rng)
    while world.lost:
        key = (1, world.lost.pop())
        world.role.handle(Reroute(key, rng.choice([P, None])), world.now_s)
    world.collect()


def finish(world: RemoteWorld, rng: random.Random, asked: Asked, cancelled: set[Key]) -> None:
    """All end, with the tokens of the model, and nothing is left of them."""
    for _ in range(10_000):
        if len(world.finished) == len(asked):
            break
        act(world, rng)
        world.step()
    world.fence_all()
    for key, (prompt, n, max_tokens) in asked.items():
        for index in range(n):
            whole = expected_output(prompt, index, max_tokens, VOCAB)
            got = world.tokens[key, index]
            assert got == (whole[: len(got)] if key in cancelled else whole)
    world.assert_nothing_held()
    assert world.blocks.counts().quarantined == 0
