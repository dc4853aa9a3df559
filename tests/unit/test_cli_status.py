"""`baton status`, `top` and `drain` against a fake router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from baton.cli.cluster_view import Snapshot, render
from baton.cli.main import main
from baton.state.base import Member
from tests.fake_cluster import LOAD, WORKER, FakeCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


def run(cluster: FakeCluster, *arguments: str) -> Result:
    environment = {"BATON_ADDRESS": cluster.address, "COLUMNS": "80"}
    return CliRunner().invoke(main, list(arguments), env=environment)


def rendered(*members: Member) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(Snapshot(members, 0, 0)))
    return capture.get()


def test_workers_as_a_table(cluster: FakeCluster) -> None:
    result = run(cluster, "status")
    assert result.exit_code == 0
    assert "1 worker · 3 running · 2 waiting at the router" in result.stdout
    for shown in ("decode-0", "127.0.0.1:7000", "decode", "50 of 100", "12 cached", "3/2"):
        assert shown in result.stdout
    for shown in ("1,234", "step 4.20 ms", "4.5 s"):
        assert shown in result.stdout
    assert "request-1" not in result.stdout


def test_two_sets_of_weights_under_one_name_are_told() -> None:
    old = Member(WORKER, (LOAD,), draining=False, lease_remaining_s=4.0)
    fingerprint = replace(WORKER.fingerprint, identity="0ther-64")
    new = replace(old, info=replace(WORKER, worker_id="decode-1", fingerprint=fingerprint))
    assert "weights" not in rendered(old)
    shown = rendered(old, new)
    assert "several sets of weights" in shown
    assert "identi" in shown
    assert "0ther-" in shown


def test_requests_with_where_their_time_went(cluster: FakeCluster) -> None:
    result = run(cluster, "status", "--requests")
    lines = result.stdout.splitlines()
    index, row = next((i, line) for i, line in enumerate(lines) if "request-1" in line)
    assert lines[index + 1].split() == ["prefill-0", "decode-0"], "each below its leg's time"
    assert " ".join(row.split()) == "request-1 length 12 4 30 250 ms 250 ms 1.50 s 2.00 s"


def test_rates_are_those_between_two_looks() -> None:
    before = Snapshot((), 0, 0, None, 10.0, num_prompt_tokens=500, num_output_tokens=100)
    now = replace(before, taken_s=12.0, num_prompt_tokens=2500, num_output_tokens=160)
    since = now.since(before)
    assert (since.prompt_tokens_per_s, since.output_tokens_per_s) == (1000, 30)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(since))
    assert "30 output tokens/s · 1,000 prompt tokens/s" in capture.get()
    restarted = replace(now, num_output_tokens=0).since(before)
    assert restarted.output_tokens_per_s is None


def test_json(cluster: FakeCluster) -> None:
    found = json.loads(run(cluster, "status", "--requests", "--json").stdout)
    assert found["workers"][0]["info"]["worker_id"] == "decode-0"
    assert found["workers"][0]["info"]["role"] == "decode"
    assert found["workers"][0]["loads"][0]["num_held_blocks"] == 50
    assert found["num_waiting_requests"] == 2
    timeline = found["requests"][0]["timeline"]
    assert timeline["phases_s"] == {"queue": 0.25, "prefill": 0.25, "decode": 1.5}
    assert json.loads(run(cluster, "status", "--json").stdout)["requests"] is None


def test_no_line_is_wider_than_a_terminal(cluster: FakeCluster) -> None:
    lines = run(cluster, "status", "--requests").stdout.splitlines()
    assert max(map(len, lines)) <= 80


def test_what_needs_a_look_is_shown() -> None:
    member = Member(WORKER, (LOAD,), draining=True, lease_remaining_s=4.0)
    assert "draining" in rendered(member)
    quarantined = replace(LOAD, num_quarantined_blocks=7)
    assert "7 quarantined" in rendered(replace(member, loads=(quarantined,)))
    assert "not reported yet" in rendered(replace(member, loads=()))
    assert rendered().strip() == "0 workers · 0 running · 0 waiting at the router"


def test_a_worker_with_several_pools_is_named_once() -> None:
    pools = (LOAD, replace(LOAD, num_held_blocks=0, num_free_blocks=88))
    shown = rendered(Member(WORKER, pools, draining=False, lease_remaining_s=4.0))
    assert shown.count("decode-0") == 1
    assert "50 of 100" in shown
    assert "0 of 100" in shown.replace("50 of 100", "")


def test_drain(cluster: FakeCluster) -> None:
    result = run(cluster, "drain", "decode-0", "--grace", "7.5", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"worker": "decode-0", "draining": True}
    assert cluster.admin.drained[-1] == ("decode-0", 7.5)
    run(cluster, "drain", "decode-0")
    assert cluster.admin.drained[-1] == ("decode-0", 0.0)


@pytest.mark.parametrize("grace", ["0", "-1", "soon"])
def test_a_grace_that_is_none(cluster: FakeCluster, grace: str) -> None:
    num_drained = len(cluster.admin.drained)
    assert run(cluster, "drain", "decode-0", "--grace", grace).exit_code == 2
    assert len(cluster.admin.drained) == num_drained
