"""`baton route` on a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from baton.cli.main import main
from tests.fake_cluster import FakeCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


def test_the_pair_and_the_time_it_would_take(cluster: FakeCluster) -> None:
    result = CliRunner().invoke(main, ["route", "hello there", "--address", cluster.address])
    assert result.exit_code == 0, result.output
    assert "prefill on prefill-0, decode on decode-0 · first token in 375 ms" in result.output
    assert "40 tokens, 11 of them to be computed, the others taken from decode-0" in result.output
    assert "prefill-1" not in result.output


def test_explain_shows_who_else_was_judged(cluster: FakeCluster) -> None:
    result = CliRunner().invoke(main, ["route", "hello", "--explain", "--address", cluster.address])
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("prefill-1")]
    assert "2.00 s" in line
    assert "2.38 s" in line
    pools = [line.split() for line in result.output.splitlines() if line.startswith("decode-0")]
    # Who would compute the prompt, streams in flight, and a step with one more.
    assert pools[0] == ["decode-0", "prefill-0", "7", "12.5", "ms"]


def test_json_has_every_part(cluster: FakeCluster) -> None:
    result = CliRunner().invoke(main, ["route", "hi", "--json", "--address", cluster.address])
    shown = json.loads(result.stdout.splitlines()[-1])
    assert shown["chosen"]["prefill"] == {"worker_id": "prefill-0", "dp_rank": 0}
    assert shown["chosen"]["local"]["others_s"] == 0.1
    assert [each["remote"]["wait_s"] for each in shown["by_prefill"]] == [0.0, 2.0]
