"""A live router's record: what it decided is decided again, the same, and can be replayed as a trace."""

from __future__ import annotations

from pathlib import Path

from baton import Client
from baton.bench.traces import read_trace
from baton.cluster.local import LocalCluster
from baton.planner.redecide import redecide
from router.routing.policy import PolicySettings

# Tiny models prefill faster than a hand-off takes: only this price sends prompts away.
INTERFERENCE = 1e6


def test_a_live_run_is_decided_again_from_its_record(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    environment = {
        "BATON_ROUTER_RECORD": str(path),
        "BATON_ROUTER_POLICY_INTERFERENCE": str(INTERFERENCE),
    }
    stem = [7 + number % 50 for number in range(700)]
    with LocalCluster(
        str(checkpoint),
        num_prefill_workers=1,
        worker_flags={"num_blocks": 64},
        environment=environment,
    ) as cluster:
        with Client([cluster.address]) as client:
            for number in range(16):
                prompt = [*stem[: 90 * (number % 8)], 60 + number]
                client.generate(prompt, max_tokens=3, ignore_eos=True)
        assert all(process.alive for process in cluster.processes()), cluster.logs()
    with path.open(encoding="utf-8") as lines:
        decisions = list(redecide(lines, PolicySettings(interference=INTERFERENCE)))
    assert len(decisions) == 16
    assert [each.decided for each in decisions] == [each.recorded for each in decisions]
    assert any(prefill is not None for _, prefill in (each.recorded for each in decisions))
    requests = read_trace(path)
    assert [each.num_output_tokens for each in requests] == [3] * 16
    assert requests[15].block_hashes[:1] == requests[7].block_hashes[:1]
