"""The campaign itself, at the size for every day: `make faults` is the same by the thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults.dealing import Directive, Fault, deal

ROOT = Path(__file__).parents[2]
TRANSPORTS = ("shm", "torch_dist")


@pytest.mark.slow
def test_no_transfer_hangs_leaks_or_is_decoded_wrong() -> None:
    """What strikes when depends on what else the machine is doing: where a class has found nobody in the
    first campaign, there are others."""
    struck: Counter[str] = Counter()
    for seed in range(1, 4):
        result = campaign(seed)
        assert [result[name] for name in ("hung", "leaked_blocks", "wrong_bytes")] == [0, 0, 0]
        assert not result["failed"]
        assert min(result["transports"].values()) > 0, result["transports"]
        assert set(TRANSPORTS) <= set(result["transports"])
        assert result["handed_over"] > 100  # of what was wanted from elsewhere
        assert len(result["faults"]) == len(Fault) - 1
        struck.update(result["faults"])
        if min(struck.values()) > 0:
            return
    raise AssertionError(f"some class of fault struck nobody: {struck}")


def campaign(seed: int) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults", "300", str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert (result["transfers"], result["seed"]) == (300, seed)
    return result


def test_a_seed_deals_the_same_again_and_every_class_on_every_transport() -> None:
    dealt = list(deal(300, 7, TRANSPORTS))
    assert dealt == list(deal(300, 7, TRANSPORTS))
    assert dealt != list(deal(300, 8, TRANSPORTS))
    counts = Counter((each.fault, each.transport) for each in dealt)
    assert all(counts[fault, transport] for fault in Fault for transport in TRANSPORTS)
    assert {each.number for each in dealt} == set(range(300))


def test_a_worker_reads_its_directive_in_the_request_id() -> None:
    dealt = next(each for each in deal(300, 7, TRANSPORTS) if each.fault is Fault.WRITER_KILLED)
    assert Directive.of(dealt.request_id) == Directive(
        Fault.WRITER_KILLED, dealt.at, dealt.worker_id
    )
