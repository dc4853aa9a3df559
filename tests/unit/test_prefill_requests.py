"""The prefill role without a process: random asks of several readers on pools that are too small, over a
link that is slow, fails, and is fenced late. What lies in the readers' pools in the end is checked.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace

import pytest

from baton.errors import (
    BatonError,
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidArgument,
    PeerLost,
    Unavailable,
)
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.step_plan import StepOutput
from baton.types import PositionLogprobs, SamplingParams
from prefill_worker.messages import (
    Ask,
    BlockWrites,
    Cancel,
    Confirm,
    Delivered,
    Failed,
    Fence,
    Fenced,
    FenceDone,
    Key,
    Open,
    PromptDone,
    ReaderLost,
    Resend,
    Turn,
    Unreadable,
    WriteCached,
    WriteFailed,
)
from prefill_worker.scheduler import PrefillLimits, PrefillScheduler
from prefill_worker.state_machine import PrefillRequests
from tests.fake_runner import FakeRunner, next_token

VOCAB, BLOCK_SIZE, HOLD_S = 100, 4, 1.0
MAX_MODEL_LEN = 4096


@dataclass
class Link:
    """The writes of one open transfer: queued, then done; none of it after the fence, for which the one in
    progress is waited."""

    destination_blocks: list[int]
    queued: list[BlockWrites] = field(default_factory=list)
    arrived: set[int] = field(default_factory=set)  # logical blocks


class World:
    """A prefill role on a fake engine with links to its readers, and everything it ever said."""

    def __init__(
        self, num_blocks: int, max_model_len: int = MAX_MODEL_LEN, **limits: float
    ) -> None:
        self.runner = FakeRunner(num_blocks, BLOCK_SIZE, VOCAB)
        self.blocks = BlockManager(num_blocks, BLOCK_SIZE)
        settings = {"max_chunk_tokens": 16, "min_chunk_tokens": 16, **limits}
        scheduler = PrefillScheduler(self.blocks, PrefillLimits(**settings))  # type: ignore[arg-type]
        self.role = PrefillRequests(scheduler, HOLD_S, VOCAB, max_model_len)
        self.now_s = 0.0
        self.asks: dict[Key, Ask] = {}
        self.links: dict[Key, Link] = {}
        self.fencing: list[Key] = []
        self.pools: dict[tuple[int, int, int], int] = {}  # (reader, block, offset) -> token
        self.done: dict[Key, PromptDone] = {}
        self.last: dict[Key, Fenced | Failed] = {}
        self.turns: dict[Key, list[bool]] = {}
        self.num_destinations: dict[int, int] = defaultdict(int)

    def ask(self, key: Key, tokens: list[int], first_block: int = 0, **more: object) -> Ask:
        """Destination blocks are never used twice, so that what lies there can be checked any time."""
        reader, num_blocks = key[0], -(-len(tokens) // BLOCK_SIZE)
        begin = self.num_destinations[reader]
        end = self.num_destinations[reader] = begin + num_blocks - first_block
        fields: dict[str, object] = {
            "key": key,
            "request_id": f"r{key}",
            "token_ids": tokens,
            "num_prompt_tokens": len(tokens),
            "first_sample_index": 0,
            "params": SamplingParams(max_tokens=8),
            "eos_token_ids": (),
            "salt": b"s",
            "first_block": first_block,
            "destination_blocks": list(range(begin, end)),
        }
        ask = self.asks[key] = Ask(**{**fields, **more})  # type: ignore[arg-type]
        self.handle(ask)
        return ask

    def handle(self, event: object) -> None:
        self.role.handle(event, self.now_s)  # type: ignore[arg-type]
        self.obey()

    def step(self, took_s: float = 0.01) -> bool:
        self.now_s += took_s
        plan = self.role.schedule(self.now_s)
        self.obey()
        if plan is not None:
            output = self.runner.run(plan)
            for key, writes in self.role.step_writes:
                self.write(key, writes)
            self.role.update(plan, output, self.now_s)
            self.obey()
        self.role.scheduler.check_integrity()
        return plan is not None

    def run(self) -> None:
        while self.step():
            pass

    def obey(self) -> None:
        commands = self.role.take_commands()
        for order in commands.orders:
            match order:
                case Open(key, _, destination_blocks):
                    self.links[key] = Link(list(destination_blocks))
                case WriteCached(key, writes):
                    self.write(key, writes)
                case Fence(key):
                    del self.links[key].queued[1:]
                    self.fencing.append(key)
        for reader, words in commands.words.items():
            for word in words:
                key = (reader, word.number)
                if isinstance(word, Turn):
                    assert key not in self.last
                    self.turns.setdefault(key, []).append(word.computing)
                    continue
                assert key not in self.last, f"{word} after the last word"
                if isinstance(word, PromptDone):
                    assert key not in self.done
                    self.done[key] = word
                else:
                    self.last[key] = word
        self.role.scheduler.check_integrity()

    def write(self, key: Key, writes: BlockWrites) -> None:
        assert set(writes.destinations) <= set(self.links[key].destination_blocks)
        if key not in self.fencing:
            self.links[key].queued.append(writes)

    def land(self, key: Key) -> None:
        """The oldest write of a link arrives: whatever lies in the source blocks now."""
        link = self.links[key]
        writes = link.queued.pop(0)
        for logical, source, destination in zip(
            writes.logical, writes.sources, writes.destinations, strict=True
        ):
            for offset in range(BLOCK_SIZE):
                if (source, offset) in self.runner.kv:
                    self.pools[key[0], destination, offset] = self.runner.kv[source, offset]
            link.arrived.add(logical)

    def land_all(self) -> None:
        for key, link in self.links.items():
            while link.queued:
                self.land(key)

    def fence_all(self) -> None:
        while self.fencing:
            self.fence(self.fencing[0])

    def fence(self, key: Key) -> None:
        """The write in progress ends, and no other follows."""
        if self.links[key].queued:
            self.land(key)
        self.fencing.remove(key)
        self.handle(FenceDone(key))

    def is_complete(self, key: Key) -> bool:
        ask = self.asks[key]
        return key in self.done and self.links[key].arrived == set(
            range(ask.first_block, ask.first_block + len(ask.destination_blocks))
        )

    def check_arrived(self, key: Key) -> None:
        """Every block that arrived holds the KV of its tokens, and the first tokens are right."""
        ask = self.asks[key]
        tokens = list(ask.token_ids)
        for position in range(ask.first_block * BLOCK_SIZE, len(tokens)):
            logical, offset = divmod(position, BLOCK_SIZE)
            if logical in self.links[key].arrived:
                block = ask.destination_blocks[logical - ask.first_block]
                assert self.pools[key[0], block, offset] == tokens[position]
        if key in self.done:
            for index, drawn in self.done[key].drawn:
                assert drawn.token_id == next_token(tokens, index, VOCAB)

    def error(self, key: Key) -> BatonError:
        word = self.last[key]
        assert isinstance(word, Failed)
        return word.error

    def assert_nothing_held(self) -> None:
        self.role.scheduler.check_integrity()
        assert self.blocks.counts().held == 0
        assert self.role.num_requests == 0
        assert not self.runner.samples or not self.role.scheduler.num_running


def test_blocks_leave_as_they_are_computed_and_stay_until_they_are_confirmed() -> None:
    world = World(num_blocks=16)
    tokens = list(range(42))
    world.ask((1, 1), tokens)
    arrived = []
    while world.step():
        world.land_all()
        arrived.append(sorted(world.links[1, 1].arrived))
    assert arrived == [[*range(4)], [*range(8)], [*range(11)]], "the last one leaves partly filled"
    assert world.is_complete((1, 1))
    world.check_arrived((1, 1))
    assert world.blocks.counts().held == 11
    world.handle(Confirm((1, 1)))
    world.fence_all()
    assert world.last == {(1, 1): Fenced(1)}
    world.assert_nothing_held()


def test_cached_blocks_leave_at_once_and_only_what_the_reader_lacks() -> None:
    world = World(num_blocks=32)
    tokens = list(range(41))
    world.ask((1, 1), tokens)
    world.run()
    world.ask((2, 1), [*tokens[:32], 9, 9], first_block=3)
    plan = world.role.schedule(world.now_s)
    world.obey()
    assert plan is not None
    assert [(piece.start, piece.end) for piece in plan.slices] == [(32, 34)]
    (cached,) = world.links[2, 1].queued
    assert list(cached.logical) == [3, 4, 5, 6, 7]
    (own,) = world.role.step_writes
    assert list(own[1].logical) == [8]
    world.role.update(plan, world.runner.run(plan), world.now_s)
    world.write(*own)
    world.obey()
    world.land_all()
    world.check_arrived((2, 1))
    assert world.done[2, 1].num_cached_tokens == 32


def test_every_sample_of_a_fresh_prompt_is_drawn_and_one_of_a_continuation() -> None:
    world = World(num_blocks=32)
    params = SamplingParams(max_tokens=8, n=3)
    world.ask((1, 1), [1, 2, 3, 4, 5], params=params)
    world.ask((1, 2), [1, 2, 3, 4, 5], params=params, num_prompt_tokens=4, first_sample_index=2)
    world.ask((1, 3), [1, 2, 3, 4, 5], params=params, sample=False)
    world.run()
    assert [index for index, _ in world.done[1, 1].drawn] == [0, 1, 2]
    assert [index for index, _ in world.done[1, 2].drawn] == [2]
    assert world.done[1, 3].drawn == []
    for number in (1, 2, 3):
        world.check_arrived((1, number))


def test_a_block_that_arrived_wrong_is_sent_again_while_it_is_held() -> None:
    world = World(num_blocks=16)
    world.ask((1, 1), list(range(10)))
    world.run()
    world.land_all()
    world.pools[1, 1, 0] = -1
    world.handle(Resend((1, 1), [1, 7]))
    (again,) = world.links[1, 1].queued
    assert list(again.logical) == [1], "7 is none of its blocks"
    world.land_all()
    world.check_arrived((1, 1))
    world.handle(Confirm((1, 1)))
    world.handle(Resend((1, 1), [1]))
    assert not world.links[1, 1].queued, "it is being fenced"


def test_who_does_not_confirm_in_time_loses_the_blocks() -> None:
    world = World(num_blocks=16)
    world.ask((1, 1), list(range(10)))
    world.run()
    assert world.role.next_deadline_s == pytest.approx(world.now_s - 0.01 + HOLD_S)
    world.step(took_s=HOLD_S / 2)
    assert world.fencing == []
    world.step(took_s=HOLD_S)
    assert world.fencing == [(1, 1)]
    assert world.blocks.counts().held == 3, "not before the fence is done"
    world.fence_all()
    assert isinstance(world.error((1, 1)), Unavailable)
    world.assert_nothing_held()


def test_a_cancelled_prompt_is_not_computed_any_further() -> None:
    world = World(num_blocks=32)
    world.ask((1, 1), list(range(100)))
    world.step()
    world.handle(Cancel((1, 1)))
    assert not world.step()
    assert world.blocks.counts().held == 25
    world.fence_all()
    assert world.last == {(1, 1): Fenced(1)}
    world.assert_nothing_held()
    world.handle(Cancel((1, 9)))
    assert world.last[1, 9] == Fenced(9), "of what it does not know it writes nothing"


def test_a_lost_reader_and_a_failed_write_end_what_they_concern_and_nothing_else() -> None:
    world = World(num_blocks=64)
    for reader in (1, 2):
        for number in (1, 2):
            world.ask((reader, number), list(range(reader, 30)))
    world.step()
    world.handle(ReaderLost(1))
    world.handle(WriteFailed((2, 1), PeerLost("gone")))
    world.fence_all()
    world.run()
    world.land_all()
    assert isinstance(world.error((2, 1)), PeerLost)
    assert world.is_complete((2, 2))
    world.check_arrived((2, 2))
    world.handle(Confirm((2, 2)))
    world.fence_all()
    world.assert_nothing_held()


def test_a_deadline_ends_a_prompt_wherever_it_is() -> None:
    world = World(num_blocks=8)
    world.ask((1, 1), list(range(32)), deadline_s=5.0)
    world.ask((1, 2), list(range(50, 82)), deadline_s=5.0)  # waits for the memory of the first
    world.step()
    world.step(took_s=5.0)
    world.fence_all()
    assert isinstance(world.error((1, 1)), DeadlineExceeded)
    assert isinstance(world.error((1, 2)), DeadlineExceeded)
    world.assert_nothing_held()


def test_a_prompt_that_cannot_be_drawn_for_is_handed_over_without_a_token() -> None:
    world = World(num_blocks=32)
    world.ask((1, 1), [1, 2, 3])
    world.ask((1, 2), [4, 5, 6])
    plan = world.role.schedule(world.now_s)
    assert plan is not None
    output = world.runner.run(plan)
    bad, good = output.drawn
    failed = StepOutput([good], 0.01, failed=[(bad.handle, InvalidArgument("NaN"))])
    world.role.update(plan, failed, world.now_s)
    world.obey()
    assert not world.fencing, "its blocks are right, and wanted"
    assert world.done[1, 1].drawn == []
    assert world.done[1, 2].drawn == [(0, good)]


def test_a_slice_that_fails_ends_its_request_alone() -> None:
    """First one of a step that could not be computed for it, then one without log-probabilities."""
    world = World(num_blocks=32)
    prompts = [[10 * key + i for i in range(6)] for key in range(4)]
    for number, prompt in enumerate(prompts):
        world.ask((1, number), prompt)
    for computed, bad in ((False, 0), (True, 1)):
        plan = world.role.schedule(world.now_s)
        assert plan is not None
        assert plan.slices[bad].token_ids == prompts[0 if not computed else 2]
        output = world.runner.run(plan if computed else replace(plan, slices=()))
        faults = {bad: InvalidArgument("NaN")}
        failed = replace(output, failed_slices=faults, computed=computed)
        if computed:
            for key, writes in world.role.step_writes:
                world.write(key, writes)
        world.role.update(plan, failed, world.now_s)
        world.obey()
    world.run()
    world.land_all()
    world.fence_all()
    for number in (0, 2):
        assert isinstance(world.error((1, number)), InvalidArgument)
        assert (1, number) not in world.done
    for number in (1, 3):
        assert world.is_complete((1, number))
        world.check_arrived((1, number))


def test_log_probabilities_of_the_prompt_come_in_order_and_bypass_the_cache() -> None:
    world = World(num_blocks=32)
    tokens = list(range(40))
    world.ask((1, 1), tokens)
    world.run()
    world.ask((1, 2), tokens, params=SamplingParams(max_tokens=8, prompt_logprobs=0))
    while plan := world.role.schedule(world.now_s):
        output = world.runner.run(plan)
        rows = {
            index: [PositionLogprobs(token, -1.0, 1) for token in piece.prompt_targets]
            for index, piece in enumerate(plan.slices)
        }
        world.role.update(plan, StepOutput(output.drawn, 0.01, rows), world.now_s)
        world.obey()
    assert [position.token_id for position in world.done[1, 2].prompt_logprobs] == tokens[1:]
    assert world.done[1, 2].num_cached_tokens == 0


def test_refusals_start_nothing() -> None:
    world = World(num_blocks=8)
    world.ask((1, 1), list(range(33)))
    world.ask((1, 2), list(range(8)), destination_blocks=[1])
    world.ask((1, 3), list(range(8)))
    world.handle(world.asks[1, 3])  # the same number again
    # What another worker may do is not the request's fault.
    assert isinstance(world.error((1, 1)), Unavailable)
    assert isinstance(world.error((1, 2)), Internal)
    assert isinstance(world.error((1, 3)), Internal)
    world.ask((1, 5), [1, VOCAB])
    assert world.error((1, 5)).field == "token_ids"
    world.ask((1, 6), [1], params=SamplingParams(max_tokens=1, n=2**31))
    assert world.error((1, 6)).field == "sampling.n"
    world.ask((1, 7), [1], num_prompt_tokens=2)
    assert world.error((1, 7)).field == "num_prompt_tokens"
    world.ask((1, 8), [1], first_sample_index=1)
    assert world.error((1, 8)).field == "sample_index"
    world.handle(Unreadable((1, 9), InvalidArgument("what?")))
    assert isinstance(world.error((1, 9)), InvalidArgument)
    world.role.start_draining()
    world.ask((1, 4), [1])
    assert isinstance(world.error((1, 4)), Draining)
    assert world.role.num_requests == 1


def test_a_prompt_above_the_models_own_length_is_refused() -> None:
    """Whatever the pool holds: there are no positions for it."""
    world = World(num_blocks=64, max_model_len=30)
    world.ask((1, 1), list(range(31)))
    assert isinstance(world.error((1, 1)), Unavailable)
    world.ask((1, 2), list(range(30)))
    world.run()
    assert (1, 2) in world.done


def test_short_prompts_pass_long_ones_but_not_for_ever() -> None:
    world = World(num_blocks=64, ageing=1.0)
    world.ask((1, 1), list(range(40)))
    world.ask((1, 2), [7, 8, 9])
    world.run()
    assert list(world.done) == [(1, 2), (1, 1)]
    world.ask((1, 3), list(range(50, 90)))
    world.now_s += 10.0
    world.ask((1, 4), [70, 80, 90])
    world.run()
    assert list(world.done)[2:] == [(1, 3), (1, 4)]


@pytest.mark.parametrize("seed", range(25))
def test_random_lives_of_random_asks(seed: int) -> None:
    rng = random.Random(seed)
    world = World(num_blocks=rng.choice([12, 20, 40]))
    stems = [[rng.randrange(VOCAB) for _ in range(24)] for _ in range(3)]
    confirmed: set[Key] = set()
    lost: set[int] = set()
    for number in range(60):
        tokens = [*rng.choice(stems)[: rng.randrange(1, 24)], rng.randrange(VOCAB)]
        key = (rng.choice([reader for reader in range(8) if reader not in lost]), number)
        world.ask(
            key,
            tokens,
            first_block=rng.randrange(-(-len(tokens) // BLOCK_SIZE)),
            params=SamplingParams(max_tokens=8, n=rng.choice([1, 1, 3])),
            priority=rng.randrange(2),
            deadline_s=world.now_s + 0.2 if rng.random() < 0.1 else None,
        )
        for _ in range(rng.randrange(6)):
            act(world, rng, confirmed)
            world.step(took_s=rng.choice([0.01, 0.01, 0.2]))
        if rng.random() < 0.05 and len(lost) < 4:
            lost.add(key[0])
            world.handle(ReaderLost(key[0]))
    for _ in range(10_000):
        if not world.role.num_requests:
            break
        act(world, rng, confirmed)
        world.step()
    assert set(world.last) == set(world.asks), "everybody hears exactly one last word"
    for key in world.asks:
        if key in world.links:
            world.check_arrived(key)
    for key in confirmed:
        assert world.is_complete(key)
    assert confirmed
    world.assert_nothing_held()


def act(world: World, rng: random.Random, confirmed: set[Key]) -> None:
    """One thing that links and readers may do."""
    busy = [key for key, link in world.links.items() if link.queued]
    if busy and rng.random() < 0.8:
        world.land(rng.choice(busy))
    if busy and rng.random() < 0.02:
        world.handle(WriteFailed(rng.choice(busy), PeerLost("gone")))
    if world.fencing and rng.random() < 0.5:
        world.fence(rng.choice(world.fencing))
    for key in [key for key in world.done if key not in world.last]:
        if key in confirmed or key in world.fencing:
            continue
        if world.is_complete(key) and rng.random() < 0.5:
            confirmed.add(key)
            world.handle(Confirm(key))
        elif world.links[key].arrived and rng.random() < 0.1:
            world.handle(Resend(key, [rng.choice(sorted(world.links[key].arrived))]))
    if rng.random() < 0.05:
        key = rng.choice(list(world.asks))
        if key not in world.last:
            world.handle(Cancel(key))


def test_a_hold_lasts_as_long_as_blocks_arrive() -> None:
    """On a slow link: what counts is the time since the reader got something, not since the prompt's end."""
    world = World(16)
    world.ask((1, 1), list(range(10)))
    world.step()
    assert (1, 1) in world.done
    for _ in range(3):
        world.now_s += 0.8 * HOLD_S
        world.handle(Delivered((1, 1)))
        world.step()
        assert (1, 1) not in world.fencing
    world.now_s += 1.1 * HOLD_S
    world.step()
    assert (1, 1) in world.fencing
