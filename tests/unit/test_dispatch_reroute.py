"""Where a prompt goes whose prefill worker was lost or refused, and what the router learns of it."""

from __future__ import annotations

from typing import cast

import pytest

from baton.errors import (
    BatonError,
    Draining,
    IncompatiblePeer,
    Internal,
    PeerLost,
    Unavailable,
)
from baton.state.embedded import EmbeddedState
from baton.types import FinishReason, PoolId, PrefillChoice, Role, Usage
from baton.v1 import decode_pb2
from router.admission.admission import AdmissionSettings
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.gate import Gate
from router.intake import Intake
from router.models import Models
from router.request import GenerateInput, SamplingInput
from router.routing.chooser import Chooser, PromptBlocks
from router.routing.commitment import Commitment
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pool, Pools
from router.telemetry.request_log import RequestLog
from router.workers.decode_stream import DecodeStream, Leg, LegEnd, Row, SampleEnd
from router.workers.fleet import Fleet
from tests.unit.lives import WEIGHTS, make_worker

ALWAYS_REMOTE = PolicySettings(local_prefill=False)
LONG = GenerateInput(prompt=(1,) * 2000, sampling=SamplingInput(max_tokens=1))


class Stream:
    """A decode worker whose prefill workers all fail, until it is told to compute a prompt itself."""

    def __init__(self, error: BatonError) -> None:
        self._error = error
        self.asked: list[str] = []  # prefill workers, in order
        self.num_local = 0

    def start(self, message: decode_pb2.Start) -> Leg:
        self._leg = Leg(1, cast(DecodeStream, self))
        prefill = message.prefill.pool.worker_id if message.HasField("prefill") else None
        self._compute(prefill)
        return self._leg

    def reroute(self, key: int, prefill: PrefillChoice | None) -> None:
        self._compute(prefill.pool.worker_id if prefill else None)

    def cancel(self, key: int, sample_index: int | None) -> None:
        raise AssertionError("nobody cancels")

    def close_leg(self, key: int) -> None:
        pass

    def _compute(self, prefill: str | None) -> None:
        pending = self._leg.pending
        if prefill is not None:
            self.asked.append(prefill)
            pending.prefill_lost = self._error
            return
        self.num_local += 1
        pending.prefill_lost = None
        pending.rows.append(Row(0, 7))
        pending.ended.append(SampleEnd(0, FinishReason.LENGTH, 0))
        pending.end = LegEnd(None, Usage(2000, 0, 1), {}, 0, None)


class OneStream(Fleet):
    """Everybody is connected, and every decode worker is the same one."""

    stream: Stream

    def takes(self, pool: Pool) -> bool:
        return not pool.draining

    def start(self, pool: Pool, message: decode_pb2.Start) -> Leg:
        return self.stream.start(message)


class World:
    def __init__(self, num_prefill: int, **config: float) -> None:
        self.pools, index = Pools(), BlockIndex()
        self.pools.put(make_worker("d-0"))
        for number in range(num_prefill):
            self.pools.put(make_worker(f"p-{number}", Role.PREFILL))
        gate = Gate(AdmissionSettings())
        self.fleet = OneStream(EmbeddedState(), self.pools, index, "r-0", gate.resize)
        self._dispatcher = Dispatcher(
            RouterConfig(**config),  # type: ignore[arg-type]
            Intake(Models({}, self.pools)),
            self.fleet,
            Chooser(self.pools, index, ALWAYS_REMOTE),
            gate,
            RequestLog(4, []),
        )

    async def serve(self, error: BatonError) -> Stream:
        """One request, whose prefill workers all answer `error`."""
        self.fleet.stream = Stream(error)
        async for _ in self._dispatcher.generate(LONG):
            pass
        for pool in self.pools:
            assert pool.num_in_flight == pool.queue.num_tokens == 0
        return self.fleet.stream


@pytest.mark.parametrize("error", [PeerLost("gone"), Unavailable("full"), Internal("odd")])
async def test_nobody_is_asked_twice_and_in_the_end_the_prompt_is_computed_where_it_is_decoded(
    error: BatonError,
) -> None:
    stream = await World(num_prefill=2).serve(error)
    assert sorted(stream.asked) == ["p-0", "p-1"]
    assert stream.num_local == 1


async def test_reroutes_are_bounded_however_many_workers_there_are() -> None:
    stream = await World(num_prefill=20, max_prefill_attempts=4).serve(Unavailable("full"))
    assert len(set(stream.asked)) == len(stream.asked) == 4
    assert stream.num_local == 1


async def test_what_a_worker_refuses_for_one_request_it_is_asked_for_others() -> None:
    world = World(num_prefill=1)
    for _ in range(2):
        assert (await world.serve(Unavailable("full"))).asked == ["p-0"]


@pytest.mark.parametrize("error", [IncompatiblePeer("other weights"), PeerLost("cut off")])
async def test_a_pair_that_does_not_work_is_not_tried_again_at_once(error: BatonError) -> None:
    world = World(num_prefill=1)
    assert (await world.serve(error)).asked == ["p-0"]
    assert (await world.serve(error)).asked == []


async def test_a_pair_that_was_lost_is_tried_again() -> None:
    world = World(num_prefill=1, pair_retry_s=1e-9)
    for _ in range(2):
        assert (await world.serve(PeerLost("cut off"))).asked == ["p-0"]


async def test_a_prefill_worker_that_leaves_is_not_asked_again() -> None:
    world = World(num_prefill=1)
    assert (await world.serve(Draining("leaving"))).asked == ["p-0"]
    assert world.pools.get(PoolId("p-0")).draining  # type: ignore[union-attr]


def test_the_orphans_of_a_dead_worker_share_the_others() -> None:
    pools, index = Pools(), BlockIndex()
    pools.put(make_worker("d-0"))
    for number in range(4):
        pools.put(make_worker(f"p-{number}", Role.PREFILL))
    chooser = Chooser(pools, index, ALWAYS_REMOTE)
    dead = pools.get(PoolId("p-0"))
    assert dead is not None
    orphans: list[tuple[Commitment, PromptBlocks]] = []
    for _ in range(50):
        prompt = PromptBlocks(WEIGHTS, 2000, [], 64)
        choice = chooser.choose(
            prompt, lambda pool: pool.worker.role is Role.DECODE or pool is dead, 0.0
        )
        assert choice is not None
        orphans.append((chooser.commit(choice, prompt, 0.0), prompt))
    assert dead.queue.num_tokens == 50 * 2000
    counts: dict[str, int] = {}
    for commitment, prompt in orphans:
        choice = chooser.reroute(commitment, prompt, lambda pool: pool is not dead, 0.0)
        assert choice.prefill is not None
        name = choice.prefill.id.worker_id
        counts[name] = counts.get(name, 0) + 1
    assert dead.queue.num_tokens == 0
    assert sorted(counts.values()) == [16, 17, 17]
    for commitment, _ in orphans:
        commitment.end(1.0)
    assert all(pool.queue.num_tokens == pool.num_in_flight == 0 for pool in pools)


def test_a_prefill_worker_for_shorter_prompts_is_no_candidate() -> None:
    pools = Pools()
    pools.put(make_worker("d-0"))
    pools.put(make_worker("p-short", Role.PREFILL, max_model_len=1024))
    chooser = Chooser(pools, BlockIndex(), ALWAYS_REMOTE)
    for num_tokens, expected in ((1024, True), (1025, False)):
        choice = chooser.choose(PromptBlocks(WEIGHTS, num_tokens, [], 64), lambda pool: True, 0.0)
        assert choice is not None
        assert (choice.prefill is not None) is expected
