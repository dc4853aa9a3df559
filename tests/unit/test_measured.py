"""What workers say of their own speed moves work only where it is worth believing."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from baton.scheduling.step_time import StepTimeModel
from baton.types import BlockId, Fingerprint, PoolId, PoolLoad, Role, Weights, WorkerInfo
from router.routing.chooser import Chooser, PromptBlocks
from router.routing.commitment import Commitment
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pools

FINGERPRINT = Fingerprint("identity", 64, 1, "fp32", 12, 4, 64)
NUM_BLOCKS = 100
STARTS = (2.0, 1.0, 3.4, 1.8)  # what equal workers took longer while others started beside them
STEP_S = 0.002


class Cluster:
    """A prefill and three decode workers, which measure as workers do: two prompts at the start, then those
    that they get. `slowness`: of each, beside 10,000 tokens/s and 2 ms a step."""

    def __init__(self, seed: int, slowness: tuple[float, ...] = (1.0,) * 4) -> None:
        self.rng = random.Random(seed)
        self.now_s = self.reported_s = 0.0
        self.shares_cores = False
        self.recent: list[str] = []
        self.chooser = Chooser(Pools(), BlockIndex(), PolicySettings())
        self.names = ["p", "d0", "d1", "d2"]
        self.slowness = dict(zip(self.names, slowness, strict=True))
        self.times = {name: StepTimeModel(step_tokens=512) for name in self.names}
        self.num_used: Counter[str] = Counter()
        self.decoded: Counter[str] = Counter()
        for name, start in zip(self.names, self.rng.sample(STARTS, 4), strict=True):
            for num_tokens in (128, 16):
                self.compute(name, num_tokens, start)
            role = Role.PREFILL if name == "p" else Role.DECODE
            self.chooser.pools.put(
                WorkerInfo(
                    name, 1, role, "", "m", FINGERPRINT, 4096, 100, 1, NUM_BLOCKS, "0", (), "h", 1
                )
            )
            self.report(name)

    def compute(self, name: str, num_tokens: int, factor: float = 1.0) -> None:
        factor *= self.slowness[name] * self.rng.lognormvariate(0.0, 0.3)
        self.times[name].observe(num_tokens, 0, factor * (0.002 + num_tokens / 10_000))
        self.times[name].observe(0, 1, factor * STEP_S)

    def report(self, name: str) -> None:
        free = max(0, NUM_BLOCKS - self.num_used[name])
        times = self.times[name]
        load = PoolLoad(
            PoolId(name), 1, 0, 0, 0, NUM_BLOCKS, free, 0, NUM_BLOCKS - free, 0,
            times.prefill_tokens_per_s, times.decode_step_s, times.prefill_cost,
        )  # fmt: skip
        self.chooser.pools.report(load)

    def start(self, num_tokens: int) -> Commitment:
        ids = [BlockId(self.rng.randbytes(16)) for _ in range(num_tokens // 64)]
        prompt = PromptBlocks(Weights("m", "identity"), num_tokens, ids, 64, 1e4)
        choice = self.chooser.choose(prompt, lambda pool: True, self.now_s)
        assert choice is not None
        commitment = self.chooser.commit(choice, prompt, self.now_s)
        self.decoded[choice.decode.id.worker_id] += 1
        for name in {choice.decode.id.worker_id, choice.computing.id.worker_id}:
            self.num_used[name] += 1 + len(ids)
        return commitment

    def end(self, commitment: Commitment) -> None:
        commitment.end(self.now_s)
        choice = commitment.choice
        name = choice.computing.id.worker_id
        self.recent = [*self.recent[-5:], name]
        # Workers share cores: whoever computes alone is faster.
        factor = len(set(self.recent)) if self.shares_cores else 1.0
        self.compute(name, choice.num_missing, factor)

    def serve(self, num_requests: int, at_a_time: int, request_s: float = 0.3) -> None:
        """`at_a_time` in flight; workers report once a second."""
        running: list[Commitment] = []
        for _ in range(num_requests):
            self.now_s += request_s / at_a_time
            while self.now_s - self.reported_s >= 1.0:
                self.reported_s += 1.0
                for name in self.names:
                    self.report(name)
            if len(running) == at_a_time:
                self.end(running.pop(0))
            running.append(self.start(self.rng.randrange(16, 200)))
        for commitment in running:
            self.end(commitment)


@pytest.mark.parametrize("at_a_time", [1, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_equal_workers_share_what_is_independent(seed: int, at_a_time: int) -> None:
    """Though they began with very different measurements, and their caches are soon full."""
    cluster = Cluster(seed)
    cluster.serve(90, at_a_time)
    assert all(abs(cluster.decoded[name] - 30) <= 7.5 for name in ("d0", "d1", "d2")), (
        cluster.decoded
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_worker_that_is_fast_because_it_runs_alone_does_not_stay_alone(seed: int) -> None:
    cluster = Cluster(seed)
    cluster.shares_cores = True
    cluster.serve(180, 2)
    cluster.decoded.clear()
    cluster.serve(90, 2)
    assert all(abs(cluster.decoded[name] - 30) <= 7.5 for name in ("d0", "d1", "d2")), (
        cluster.decoded
    )


def test_a_worker_that_is_slow_gets_less_and_is_tried_again() -> None:
    cluster = Cluster(1, (1.0, 1.0, 1.0, 5.0))
    cluster.serve(300, 1)
    assert cluster.decoded["d2"] < 30
    cluster.decoded.clear()
    cluster.serve(600, 1)
    assert 3 <= cluster.decoded["d2"] < 30
