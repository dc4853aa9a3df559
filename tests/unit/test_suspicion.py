"""A request that ends workers is found out by the second, and ended; those beside it go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest

from baton.errors import BatonError, Draining, PeerLost, Suspected, Unavailable
from baton.state.embedded import EmbeddedState
from baton.types import FinishReason, PrefillChoice, Role, Usage
from baton.v1 import decode_pb2
from decode_worker.messages import HandOffFailed, Outbox, Reroute
from router.admission.admission import AdmissionSettings
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.frontend import Deltas
from router.gate import Gate
from router.intake import Intake
from router.models import Models
from router.request import GenerateInput, SamplingInput
from router.routing.chooser import Chooser
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pool, Pools
from router.telemetry.request_log import RequestLog
from router.workers.decode_stream import DecodeStream, Leg, LegEnd, Row, SampleEnd
from router.workers.fleet import Fleet
from tests.fake_runner import expected_output
from tests.unit.lives import make_worker
from tests.unit.test_decode_hand_off import P, RemoteWorld
from tests.unit.test_decode_requests import VOCAB, World
from tests.unit.test_prefill_requests import World as PrefillWorld

# What routers are told, and what a worker computes beside a suspect


class TellingWorld(World):
    """Keeps what was said of turns: ("+", number) joins the coming step, ("-", number) is not in it."""

    def __init__(self, num_blocks: int, **limits: int) -> None:
        self.turns: list[tuple[str, int]] = []
        super().__init__(num_blocks, **limits)

    def absorb(self, router: int, outbox: Outbox) -> None:
        self.turns += [("+", number) for number in outbox.computing]
        self.turns += [("-", number) for number in outbox.waiting]
        super().absorb(router, outbox)

    def take_turns(self) -> set[tuple[str, int]]:
        turns, self.turns = set(self.turns), []
        return turns


def test_a_change_of_turns_is_told_before_the_step_and_nothing_while_there_is_none() -> None:
    world = TellingWorld(num_blocks=64, max_running=2)
    for number in (1, 2, 3):
        world.start((1, number), [number], max_tokens=6 if number == 1 else 4)
    plan = world.role.schedule(world.now_s)
    assert plan is not None
    world.collect()
    assert world.take_turns() == {("+", 1), ("+", 2), ("-", 3)}, "before it runs"
    world.role.update(plan, world.runner.run(plan), world.now_s)
    for _ in range(2):
        world.collect()
        plan = world.role.schedule(world.now_s)
        assert plan is not None
        assert not world.role.take_commands().outboxes, "a steady step has nothing to tell"
        world.role.update(plan, world.runner.run(plan), world.now_s)
    world.run()
    assert world.turns[0] == ("+", 3)
    assert len(world.turns) == 1, "of what has ended nothing is told"


def test_no_step_computes_two_suspects_until_they_have_a_token() -> None:
    world = TellingWorld(num_blocks=64)
    prompts = {number: [10 * number + i for i in range(7)] for number in (1, 2, 3, 4)}
    for number, prompt in prompts.items():
        world.start((1, number), prompt, max_tokens=8, suspected=number in (2, 3), n=2)
    steps: list[tuple[set[int], bool]] = []
    while plan := world.role.schedule(world.now_s):
        commands = world.role.take_commands()
        world.obey(commands)
        computed = {piece.token_ids[0] // 10 for piece in plan.slices if len(piece.token_ids) > 1}
        steps.append((computed, commands.first))
        world.role.update(plan, world.runner.run(plan), world.now_s)
        world.collect()
    assert not any({2, 3} <= computed for computed, _ in steps)
    for number in (2, 3):
        assert [first for computed, first in steps if number in computed] == [True]
    assert steps[-1] == (set(), False)
    for number, prompt in prompts.items():
        for index in (0, 1):
            assert world.tokens[(1, number), index] == expected_output(prompt, index, 8, VOCAB)
    world.assert_nothing_held()


def test_a_prefill_worker_computes_one_suspect_at_a_time_and_tells_whose_turn_it_is() -> None:
    world = PrefillWorld(num_blocks=64, max_chunk_tokens=64)
    for number in (1, 2, 3):
        world.ask((1, number), [10 * number + i for i in range(6)], suspected=number > 1)
    firsts: list[bool] = []
    while plan := world.role.schedule(world.now_s):
        commands = world.role.take_commands()
        firsts.append(commands.first)
        assert sum(piece.token_ids[0] > 20 for piece in plan.slices) <= 1
        turns = {w.number: w.computing for w in commands.words[1]}  # type: ignore[union-attr]
        computed = {int(piece.token_ids[0]) // 10 for piece in plan.slices}
        assert {number for number, computing in turns.items() if computing} == computed
        world.role.update(plan, world.runner.run(plan), world.now_s)
        world.role.take_commands()
    assert firsts == [True, True]


def test_a_prefill_worker_that_dies_at_work_makes_a_suspect() -> None:
    world = RemoteWorld(num_blocks=64)
    world.start((1, 1), list(range(9)), max_tokens=2, prefill=P)
    (first,) = world.asked.values()
    assert not first.suspected
    died = HandOffFailed(first.transfer, PeerLost("gone"), 0, fenced=True, computing=True)
    world.role.handle(died, world.now_s)
    (lost,) = world.role.take_commands().outboxes[1].prefill_lost
    assert lost.computing
    world.role.handle(Reroute((1, 1), P), world.now_s)
    world.collect()
    assert world.asked[max(world.asked)].suspected


# What the router makes of it

Attempt = Callable[[Leg], None]


def dies(*, computing: bool | None, token: bool = False) -> Attempt:
    def attempt(leg: Leg) -> None:
        leg.computing = computing
        if token:
            leg.pending.rows.append(Row(0, 7))
        leg.lose(Unavailable("worker d was lost"))

    return attempt


def ends(error: BatonError | None, *, computing: bool | None = True) -> Attempt:
    def attempt(leg: Leg) -> None:
        leg.computing = computing
        if error is None:
            leg.pending.rows.append(Row(0, 7))
            leg.pending.ended.append(SampleEnd(0, FinishReason.LENGTH, 0))
        leg.pending.end = LegEnd(error, Usage(3, 0, 1), {}, 0, None)

    return attempt


def loses_prefill(*, computing: bool) -> Attempt:
    def attempt(leg: Leg) -> None:
        leg.pending.prefill_lost = PeerLost("gone")
        leg.pending.prefill_lost_computing = computing

    return attempt


class Script(Fleet):
    """Everybody is connected; what comes of each attempt, and each other prefill worker, is scripted."""

    attempts: list[Attempt]
    suspected: list[bool]

    def takes(self, pool: Pool) -> bool:
        return not pool.draining

    def start(self, pool: Pool, message: decode_pb2.Start) -> Leg:
        self.suspected.append(message.suspected)
        self.leg = Leg(1, cast(DecodeStream, self))
        self.attempts.pop(0)(self.leg)
        return self.leg

    def reroute(self, key: int, prefill: PrefillChoice | None) -> None:
        self.attempts.pop(0)(self.leg)

    def cancel(self, key: int, sample_index: int | None) -> None:
        pass

    def close_leg(self, key: int) -> None:
        pass


async def serve(attempts: Sequence[Attempt], **config: int) -> tuple[int, list[bool]]:
    """The number of tokens that the client got, and whether each attempt went out as a suspect's."""
    pools, index = Pools(), BlockIndex()
    for number in range(6):
        pools.put(make_worker(f"d-{number}"))
    pools.put(make_worker("p-0", Role.PREFILL))
    pools.put(make_worker("p-1", Role.PREFILL))
    gate = Gate(AdmissionSettings())
    fleet = Script(EmbeddedState(), pools, index, "r-0", gate.resize)
    fleet.attempts, fleet.suspected = list(attempts), []
    chooser = Chooser(pools, index, PolicySettings(local_prefill=False))
    settings = RouterConfig(max_attempts=8, **config)  # type: ignore[arg-type]
    intake = Intake(Models({}, pools))
    dispatcher = Dispatcher(settings, intake, fleet, chooser, gate, RequestLog(4, []))
    request = GenerateInput(prompt=(1, 2, 3), sampling=SamplingInput(max_tokens=5))
    num_tokens = 0
    async for update in dispatcher.generate(request):
        if isinstance(update, Deltas):
            num_tokens += sum(len(delta.token_ids) for delta in update.deltas)
    assert not fleet.attempts
    return num_tokens, fleet.suspected


DIES, DONE = dies(computing=True), ends(None)


@pytest.mark.parametrize(
    "deaths",
    [
        [DIES, DIES],
        [dies(computing=None), DIES],  # sent last: the worker may have begun
        [DIES, ends(Draining("leaving")), dies(computing=False), DIES],
        [ends(Unavailable("the engine failed")), ends(Unavailable("the engine failed"))],
        [loses_prefill(computing=True), DIES],
        [loses_prefill(computing=True), loses_prefill(computing=True)],
        [dies(computing=True, token=True), DIES],  # it came before the death
    ],
)
async def test_the_second_worker_that_dies_at_work_on_a_request_is_the_last(
    deaths: list[Attempt],
) -> None:
    with pytest.raises(Suspected, match="2 workers died"):
        await serve(deaths)


@pytest.mark.parametrize(
    "deaths",
    [
        [dies(computing=False)] * 3,  # it was there, and waited
        [DIES, *[dies(computing=None)] * 3],  # of a suspect a worker would have told
        [DIES, *[dies(computing=False)] * 3],
        [ends(Draining("leaving"))] * 3,
        [ends(Unavailable("the pool that was meant is gone"), computing=None)] * 3,
        [loses_prefill(computing=False), loses_prefill(computing=False), DIES],
    ],
)
async def test_a_request_that_was_merely_there_goes_on(deaths: list[Attempt]) -> None:
    num_tokens, _ = await serve([*deaths, DONE])
    assert num_tokens == 1


async def test_a_token_clears_the_suspicion() -> None:
    with_token = dies(computing=True, token=True)
    num_tokens, suspected = await serve([DIES, with_token, with_token, dies(computing=False), DONE])
    assert num_tokens == 3
    assert suspected == [False, True, True, True, True]


async def test_how_many_deaths_it_takes_is_configured() -> None:
    with pytest.raises(Suspected, match="1 workers"):
        await serve([DIES], max_suspected_deaths=1)
    assert (await serve([DIES, DIES, DONE], max_suspected_deaths=3))[0] == 1
