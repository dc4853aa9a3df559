"""What a router wrote down is decided again, the same."""

from __future__ import annotations

import math
import operator
import random
from functools import partial
from pathlib import Path

import pytest

from baton.bench.traces import read_trace
from baton.errors import ConfigError
from baton.planner.redecide import redecide
from baton.prefill_cost import PrefillCost
from baton.state.base import InFlight
from baton.types import BlockId, Fingerprint, PoolId, PoolLoad, Role, Weights, WorkerInfo
from router.routing.chooser import Chooser, PromptBlocks
from router.routing.commitment import Commitment
from router.routing.policy import PolicySettings
from router.routing.pools import Pool
from router.telemetry.record import RecordedChooser, Recorder

SETTINGS = PolicySettings()
BLOCK_SIZE = 64
WEIGHTS = Weights("m", "identity")


def worker(name: str, role: Role, incarnation: int = 1) -> WorkerInfo:
    fingerprint = Fingerprint("identity", BLOCK_SIZE, 1, "fp32", 12, 4, 64)
    return WorkerInfo(
        name, incarnation, role, "h:1", "m", fingerprint, 4096, 100, 1, 500, "0", ("shm",), "h", 1
    )


def load(pool: Pool, rng: random.Random) -> PoolLoad:
    free, rate = rng.randrange(500), rng.uniform(500, 2000)
    cost = PrefillCost(1e-7, 1 / rate, 0.01, 256) if rng.random() < 0.8 else None
    return PoolLoad(
        pool.id, 1, 0, 0, 0, 500, free, 0, 500 - free, 0, rate, rng.uniform(0.01, 0.03), cost
    )


def live(chooser: Chooser, seed: int) -> list[int]:
    """Random days of a router; the output lengths of its requests."""
    rng = random.Random(seed)
    for number in range(12):
        chooser.pools.put(worker(f"p{number}", Role.PREFILL))
        chooser.pools.put(worker(f"d{number}", Role.DECODE))
    pools = list(chooser.pools)
    stems = [[BlockId(rng.randbytes(16)) for _ in range(20)] for _ in range(6)]
    running: list[tuple[Commitment, PromptBlocks]] = []
    outputs: list[int] = []
    now_s = 100.0
    for _ in range(400):
        now_s += rng.expovariate(20)
        pool, stem = rng.choice(pools), rng.choice(stems)
        match rng.randrange(11):
            case 0:
                chooser.pools.report(load(pool, rng))
            case 1:
                chooser.index.store(pool.id, stem[: rng.randrange(20)])
            case 2:
                chooser.index.remove(pool.id, stem[rng.randrange(20) :])
            case 3 if rng.random() < 0.2:
                chooser.index.drop(pool.id)
            case 4:
                works = {pool.id: InFlight(rng.randrange(3), rng.randrange(900))}
                chooser.pools.note_elsewhere([works, {pools[0].id: InFlight(1, 5)}])
                pool.transfer_bytes_per_s = rng.uniform(1e8, 1e9)
            case 5 if running:
                commitment, _ = running.pop(rng.randrange(len(running)))
                commitment.computed(now_s)
                outputs.append(rng.randrange(1, 50))
                commitment.end(now_s + 0.001, outputs[-1])
            case 6 if running:
                commitment, prompt = rng.choice(running)
                chooser.reroute(commitment, prompt, partial(operator.is_not, pool), now_s)
            case 7:
                apart_s = now_s + rng.choice([1.0, 5.0, math.inf])
                chooser.pools.keep_apart(rng.choice(pools).id, pool.instance, apart_s)
            case _:
                num_tokens = rng.randrange(1, 20 * BLOCK_SIZE)
                prompt = PromptBlocks(
                    WEIGHTS, num_tokens, stem[: num_tokens // BLOCK_SIZE], BLOCK_SIZE, 1e4
                )
                choice = chooser.choose(prompt, partial(operator.is_not, pool), now_s)
                assert choice is not None
                running.append((chooser.commit(choice, prompt, now_s), prompt))
    for commitment, _ in running:
        commitment.end(now_s, 7)
        outputs.append(7)
    return outputs


@pytest.mark.parametrize("seed", range(3))
def test_the_same_choices_follow_from_a_record(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "record"
    with Recorder(path) as recorder:
        outputs = live(RecordedChooser(recorder, SETTINGS), seed)
    with path.open(encoding="utf-8") as lines:
        decisions = list(redecide(lines, SETTINGS))
    assert len(decisions) == len(outputs)
    assert [each.decided for each in decisions] == [each.recorded for each in decisions]
    assert len({each.recorded for each in decisions}) > 10, "there was something to choose"
    other = PolicySettings(hand_off_s=0.5, interference=0.0)
    with path.open(encoding="utf-8") as lines:
        assert any(each.decided != each.recorded for each in redecide(lines, other))


def test_a_record_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with Recorder(path) as recorder:
        outputs = live(RecordedChooser(recorder, SETTINGS), 0)
    with path.open(encoding="utf-8") as lines:
        decisions = list(redecide(lines, SETTINGS))
    requests = read_trace(path)
    assert [each.num_prompt_tokens for each in requests] == [d.prompt.num_tokens for d in decisions]
    assert sorted(each.num_output_tokens for each in requests) == sorted(outputs)
    assert [each.due_s for each in requests] == [d.at_s - decisions[0].at_s for d in decisions]
    for request, decision in zip(requests, decisions, strict=True):
        assert len(request.block_hashes) == len(decision.prompt.block_ids)


@pytest.mark.parametrize("text", ["", "[1,2]\n", '{"baton_record": 2}\n[0, "flies"]\n'])
def test_what_is_no_record_is_refused(text: str) -> None:
    lines = text.splitlines() or ["nothing"]
    with pytest.raises(ConfigError, match="line"):
        list(redecide(lines, SETTINGS))


def test_pools_are_named_with_their_rank(tmp_path: Path) -> None:
    path = tmp_path / "record"
    with Recorder(path) as recorder:
        chooser = RecordedChooser(recorder, SETTINGS)
        chooser.pools.put(worker("a/b", Role.DECODE))
        prompt = PromptBlocks(WEIGHTS, 10, (), BLOCK_SIZE)
        assert chooser.choose(prompt, lambda pool: True, 1.0)
    with path.open(encoding="utf-8") as lines:
        (decision,) = redecide(lines, SETTINGS)
    assert decision.recorded == (PoolId("a/b", 0), None)
