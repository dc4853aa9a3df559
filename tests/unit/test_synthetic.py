"""Made-up arrivals, and the routers that are compared on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.bench.replay import arrivals, find_trace, replay
from baton.bench.synthetic import KINDS, named
from baton.errors import ConfigError
from baton.planner.profile import MOCKER
from baton.planner.report import ReplayReport
from baton.planner.simulator import Baseline, ClusterShape
from router.routing.policy import PolicySettings

BATON = PolicySettings(hand_off_s=0.0, lend=False, local_prefill=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_always_the_same_trace(kind: str) -> None:
    trace = named(f"synthetic/{kind}/3", limit=300)
    assert trace == named(f"synthetic/{kind}/3", limit=300)
    assert trace != named(f"synthetic/{kind}/4", limit=300)
    assert len(trace) == 300
    due_s = [each.due_s for each in trace if each.due_s is not None]
    assert due_s == sorted(due_s)
    assert due_s[0] == 0.0
    for each in trace:
        assert len(each.block_hashes) == each.num_prompt_tokens // each.block_size
        assert 1 <= each.num_output_tokens <= 2000


def test_kinds_share_as_they_say() -> None:
    def shared(kind: str) -> float:
        """Of the blocks, those that an earlier prompt has, too."""
        blocks = [block for each in named(f"synthetic/{kind}/3") for block in each.block_hashes]
        return 1 - len(set(blocks)) / len(blocks)

    assert shared("unshared") == 0.0
    assert 0.5 < shared("batches") < shared("chat") < shared("agents") < 0.95


@pytest.mark.parametrize(
    "name", ["synthetic", "synthetic/chat", "synthetic/x/1", "synthetic/chat/a"]
)
def test_what_is_no_kind_or_no_seed_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="synthetic/KIND/SEED"):
        find_trace(Path(name), None)


def measured(kind: str, policy: PolicySettings | Baseline) -> ReplayReport:
    trace = arrivals(named(f"synthetic/{kind}/9", limit=700), block_size=512, speedup=2.0)
    return replay(ClusterShape(4, 4, 2000, 512, MOCKER, policy), trace).report


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_to_the_router_that_is_compared(kind: str) -> None:
    """Neither the mean nor the longest waits (here those of seven requests) nor the balance of workers."""
    ours, theirs = measured(kind, BATON), measured(kind, Baseline.OVERLAP)
    assert ours.reuse_ratio >= theirs.reuse_ratio
    assert ours.ttft_ms.mean < 1.01 * theirs.ttft_ms.mean
    assert ours.ttft_ms.p99 < 1.05 * theirs.ttft_ms.p99
    assert max(ours.prefill_imbalance, ours.decode_imbalance) <= 1.25
