"""Nobody who waits for memory is passed by those who came later, whatever these want it for."""

from __future__ import annotations

from itertools import count

import pytest

from baton.scheduling import sample_blocks
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.block_order import Wish, grant, urgency
from baton.scheduling.sample import Sample
from baton.scheduling.step_plan import StepOutput
from baton.types import SamplingParams
from prefill_worker.scheduler import PrefillLimits, PrefillScheduler
from tests.fake_runner import expected_output
from tests.unit.test_decode_hand_off import P, RemoteWorld
from tests.unit.test_decode_requests import VOCAB

BLOCK_SIZE = 4


def sample(handle: int, num_blocks: int, first_token: int = 0, *, arrival_s: float = 0.0) -> Sample:
    tokens = list(range(first_token, first_token + num_blocks * BLOCK_SIZE))
    params = SamplingParams(max_tokens=1)
    return Sample(handle, 0, params, tokens, len(tokens), frozenset(), b"s", arrival_s=arrival_s)


def handles(samples: list[Sample]) -> list[int]:
    return [each.handle for each in samples]


def test_who_cannot_have_blocks_holds_back_all_behind() -> None:
    blocks = BlockManager(10, BLOCK_SIZE)
    wishes = [
        Wish(sample(1, 4), True),
        Wish(sample(2, 7, 100), True),
        Wish(sample(3, 1, 200), True),
    ]
    assert handles(grant(wishes, blocks)) == [1]
    assert blocks.num_available == 6


def test_blocks_are_kept_for_whoever_waits_for_a_turn() -> None:
    blocks = BlockManager(10, BLOCK_SIZE)
    waiting = Wish(sample(1, 6), at_once=False)
    assert handles(grant([waiting, Wish(sample(2, 4, 100), True)], blocks)) == [2]
    assert handles(grant([waiting, Wish(sample(3, 1, 200), True)], blocks)) == []
    assert sample_blocks.take(waiting.sample, blocks)


def test_blocks_that_are_held_already_need_not_be_kept() -> None:
    blocks = BlockManager(10, BLOCK_SIZE)
    holder = sample(1, 6)
    assert sample_blocks.take(holder, blocks)
    holder.num_computed = len(holder.token_ids)
    sample_blocks.publish(holder, blocks)
    same = sample(2, 7)
    assert sample_blocks.num_wanted(same, blocks) == 1
    wishes = [Wish(same, False), Wish(sample(3, 3, 100), True)]
    assert handles(grant(wishes, blocks)) == [3]
    sample_blocks.give_back(holder, blocks)
    assert sample_blocks.num_wanted(same, blocks) == 7, "cached blocks are others' to take, too"


def test_spare_blocks_and_places_are_heeded() -> None:
    blocks = BlockManager(10, BLOCK_SIZE)
    wishes = [Wish(sample(number, 2, 100 * number), True) for number in range(1, 6)]
    assert handles(grant(wishes, blocks, lambda: 3)) == [1, 2, 3]
    assert handles(grant(wishes[3:], blocks, num_places=1)) == [4]
    assert handles(grant(wishes[4:], blocks, num_places=0)) == []


def test_priority_comes_before_arrival() -> None:
    early, late, urgent = (sample(1, 1), sample(2, 1, arrival_s=1.0), sample(3, 1, arrival_s=2.0))
    urgent.priority = 1
    assert sorted((late, early, urgent), key=urgency) == [urgent, early, late]


def hand_offs(world: RemoteWorld, numbers: count[int]) -> None:
    """One more that stays for a few steps, and the prefill worker has done what it was asked."""
    for transfer in list(world.asked):
        world.complete(transfer)
    number = next(numbers)
    prompt = [(number * 7 + at) % VOCAB for at in range(18)]
    world.start((1, number), prompt, max_tokens=6, prefill=P)


@pytest.mark.parametrize("is_preempted", [False, True])
def test_hand_offs_do_not_pass_who_waits_for_memory_on_a_decode_worker(is_preempted: bool) -> None:
    world = RemoteWorld(num_blocks=40, max_running=32)
    numbers = count(100)
    prompt = [number % VOCAB for number in range(5, 105)]
    if is_preempted:
        urgent = [number % VOCAB for number in range(50, 90)]
        world.start((1, 1), urgent, max_tokens=30, priority=1)
    else:
        for _ in range(6):
            hand_offs(world, numbers)
            world.step()
    world.start((1, 2), prompt, max_tokens=8)
    for _ in range(80):
        world.step()
        hand_offs(world, numbers)
    assert (1, 2) in world.finished
    assert world.num_preemptions or not is_preempted
    assert world.tokens[(1, 2), 0] == expected_output(prompt, 0, 8, VOCAB)
    assert len(world.finished) > 40, "hand-offs were served meanwhile"


def test_borrowers_do_not_pass_who_waits_for_memory_on_a_prefill_worker() -> None:
    blocks = BlockManager(16, BLOCK_SIZE)
    scheduler = PrefillScheduler(blocks, PrefillLimits(min_chunk_tokens=16, max_chunk_tokens=16))
    numbers = count(10)
    stays: list[Sample] = []
    patient = sample(1, 12, 500)
    for step in range(100):
        now_s = step * 0.01
        borrower = sample(next(numbers), 5, 1000 * step, arrival_s=now_s)
        scheduler.add(borrower, (), num_lent_blocks=4)
        if step == 5:
            scheduler.add(patient, ())
        if (plan := scheduler.schedule(now_s)) is not None:
            scheduler.update(plan, StepOutput((), 0.001))
        for lent, logical in scheduler.take_borrowers():
            scheduler.borrowed(lent, logical.stop)
            stays.append(lent)
        if step % 2 and stays and stays[0].num_missing == 0:
            scheduler.release(stays.pop(0))
        scheduler.check_integrity()
    assert patient.num_missing == 0
