"""A prefix that the decode worker lends to the prefill worker: both roles without a process."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from baton.errors import PeerLost
from baton.types import PoolId, PrefillChoice, SamplingParams
from decode_worker.messages import Cancel as CancelRequest
from decode_worker.messages import HandOffFailed, LendOver
from prefill_worker.messages import Borrow, Borrowed, Cancel, FenceDone
from tests.fake_runner import next_token
from tests.unit import test_decode_hand_off, test_prefill_requests
from tests.unit.test_decode_requests import VOCAB

LENDING = PrefillChoice(PoolId("p"), 1, "127.0.0.1:1", lend=True)
PROMPT = [token % VOCAB for token in range(3, 31)]  # seven blocks of 4
KEY = (1, 1)


class Borrowing(test_prefill_requests.World):
    """A prefill role whose readers write only what `arrive` says."""

    def __init__(self, num_blocks: int = 64) -> None:
        super().__init__(num_blocks)
        self.borrows: list[Borrow] = []

    def obey(self) -> None:
        orders = self.role._orders
        self.borrows += [order for order in orders if isinstance(order, Borrow)]
        self.role._orders = [order for order in orders if not isinstance(order, Borrow)]
        super().obey()

    def arrive(self, borrow: Borrow, tokens: list[int], *, ok: bool = True) -> None:
        for index, block in enumerate(borrow.blocks, borrow.first_block):
            for offset in range(4):
                token = tokens[index * 4 + offset] if ok else -1
                self.runner.kv[block, offset] = token
        self.handle(Borrowed(borrow.key, ok=ok))


@pytest.mark.parametrize("ok", [True, False])
def test_what_is_borrowed_is_not_computed(ok: bool) -> None:
    world = Borrowing()
    world.ask(KEY, PROMPT, first_block=5, lends="shm")
    assert not world.step(), "nothing is computed before the prefix is here"
    (borrow,) = world.borrows
    assert (borrow.first_block, len(borrow.blocks), borrow.transport) == (0, 5, "shm")
    world.arrive(borrow, PROMPT, ok=ok)
    plan = world.role.schedule(world.now_s)
    assert plan is not None
    assert plan.slices[0].start == (20 if ok else 0)
    world.role.update(plan, world.runner.run(plan), world.now_s)
    world.obey()
    world.run()
    done = world.done[KEY]
    assert done.num_lent_tokens == (20 if ok else 0)
    assert [drawn.token_id for _, drawn in done.drawn] == [next_token(PROMPT, 0, 100)]
    # What was borrowed or computed is cache for whoever comes next.
    world.ask((2, 1), PROMPT, lends="")
    world.run()
    assert world.done[2, 1].num_cached_tokens == 24


def test_only_what_is_lacking_is_borrowed() -> None:
    world = Borrowing()
    world.ask((2, 1), PROMPT[:12])
    world.run()
    world.ask(KEY, PROMPT, first_block=5, lends="shm")
    world.step()
    (borrow,) = world.borrows
    assert (borrow.first_block, len(borrow.blocks)) == (3, 2)


def test_nothing_is_borrowed_where_every_position_is_wanted() -> None:
    """Log-probabilities of the prompt come from its computation."""
    world = Borrowing()
    params = SamplingParams(max_tokens=8, prompt_logprobs=0)
    world.ask(KEY, PROMPT, first_block=5, lends="shm", params=params)
    world.run()
    assert not world.borrows
    assert world.done[KEY].num_lent_tokens == 0


def test_others_compute_while_a_prefix_is_on_its_way() -> None:
    world = Borrowing()
    world.ask(KEY, PROMPT, first_block=5, lends="shm")
    world.ask((2, 1), PROMPT[::-1])
    world.run()
    assert (2, 1) in world.done
    assert KEY not in world.done
    world.arrive(world.borrows[0], PROMPT)
    world.run()
    assert KEY in world.done


def test_blocks_that_are_being_lent_stay_until_that_is_over() -> None:
    world = Borrowing(num_blocks=7)
    world.ask(KEY, PROMPT, first_block=5, lends="shm")
    world.step()
    world.handle(Cancel(KEY))
    assert world.blocks.counts().held == 7, "the reader may still be writing"
    world.handle(Borrowed(KEY, ok=True))  # its last word may still come
    assert world.blocks.counts().held == 7
    world.handle(FenceDone(KEY))
    assert world.blocks.counts().held == 0
    assert KEY in world.last


@dataclass
class Lending:
    """A decode role that has the first blocks of the prompt, and was asked to have the rest computed."""

    world: test_decode_hand_off.RemoteWorld
    transfer: int
    lent: list[int]

    @classmethod
    def begun(cls, num_blocks: int = 32) -> Lending:
        world = test_decode_hand_off.RemoteWorld(num_blocks)
        world.start((1, 1), PROMPT[:20], max_tokens=2)
        world.run()
        world.start((1, 2), PROMPT, max_tokens=4, prefill=LENDING)
        (ask,) = world.asked.values()
        assert ask.first_block == 5
        assert len(ask.lent_blocks) == 5
        return cls(world, ask.transfer, list(ask.lent_blocks))

    def num_held(self) -> int:
        return self.world.blocks.counts().held


def test_the_prefix_that_is_here_is_lent() -> None:
    lending = Lending.begun()
    world = lending.world
    tokens = [world.runner.kv[block, offset] for block in lending.lent for offset in range(4)]
    assert tokens == PROMPT[:20]
    world.complete(lending.transfer)
    world.run()
    assert lending.num_held() == 5, "the loan outlives the request"
    world.role.handle(LendOver(lending.transfer), world.now_s)
    world.assert_nothing_held()


def test_lent_blocks_stay_when_the_request_is_gone() -> None:
    lending = Lending.begun()
    world = lending.world
    world.role.handle(CancelRequest((1, 2)), world.now_s)
    world.collect()
    assert lending.num_held() == 5
    for other in range(3, 6):  # whoever wants blocks gets others
        prompt = [(token * other) % VOCAB for token in range(1, 60)]
        world.start((1, other), prompt, max_tokens=2)
        world.run()
    tokens = [world.runner.kv[block, offset] for block in lending.lent for offset in range(4)]
    assert tokens == PROMPT[:20]
    world.role.handle(LendOver(lending.transfer), world.now_s)
    world.fence_all()
    world.assert_nothing_held()


def test_a_lost_prefill_worker_ends_the_loan_like_any_other() -> None:
    lending = Lending.begun()
    world = lending.world
    failed = HandOffFailed(lending.transfer, PeerLost("gone"), 0, fenced=True)
    world.asked.pop(lending.transfer)
    world.role.handle(failed, world.now_s)
    world.role.handle(LendOver(lending.transfer), world.now_s)
    world.collect()
    assert world.lost == [2]
    world.scheduler.check_integrity()


def test_nothing_is_lent_unless_the_router_says_so() -> None:
    world = test_decode_hand_off.RemoteWorld(32)
    world.start((1, 1), PROMPT[:20], max_tokens=2)
    world.run()
    world.start((1, 2), PROMPT, max_tokens=4, prefill=test_decode_hand_off.P)
    (ask,) = world.asked.values()
    assert ask.first_block == 5
    assert not ask.lent_blocks
