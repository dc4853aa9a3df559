"""`baton bench serve` as a command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from baton.bench.serve import LoadSettings, plan
from baton.bench.workload import Lengths
from baton.cli.main import main
from baton.errors import Overloaded
from tests.fake_cluster import FakeCluster

KEYS = (
    "requests",
    "errors",
    "ttft_ms",
    "itl_ms",
    "e2e_ms",
    "output_tokens_per_s",
    "goodput_requests_per_s",
)
TRACE = (
    '{"timestamp": 0, "input_length": 20, "output_length": 3}\n'
    '{"timestamp": 30, "input_length": 500, "output_length": 2}\n'
)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text(TRACE)
    return path


def serve(cluster: FakeCluster, *arguments: object) -> Result:
    words = ["bench", "serve", *map(str, arguments)]
    environment = {"BATON_ADDRESS": cluster.address, "COLUMNS": "80"}
    return CliRunner().invoke(main, words, env=environment)


def prompt_lengths(cluster: FakeCluster) -> list[int]:
    return [len(request.token_ids.ids) for request in cluster.inference.requests]


def test_json_on_stdout_and_progress_on_stderr(cluster: FakeCluster) -> None:
    arguments = ("--num-requests", 10, "--prompt-tokens", "4-6", "--output-tokens", 3)
    result = serve(cluster, *arguments, "--concurrency", 2, "--warmup", 3, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert [key for key in found if key in KEYS] == list(KEYS)
    assert (found["requests"], found["errors"], found["output_tokens"]) == (10, 0, 30)
    assert found["itl_ms"]["p50"] >= 0
    assert (found["protocol"], found["model"]) == ("grpc", "fake")
    assert "10/10" in result.stderr
    assert len(cluster.inference.requests) == 13
    assert set(prompt_lengths(cluster)) <= {4, 5, 6}


def test_a_table_for_people(cluster: FakeCluster) -> None:
    result = serve(cluster, "--num-requests", 4, "--output-tokens", 3, "--prompt-tokens", 8)
    assert result.exit_code == 0
    for shown in ("time to first token", "inter-token latency", "goodput requests/s", "12 tokens"):
        assert shown in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "failed" not in result.stdout


def test_the_warm_up_has_prompts_of_its_own(cluster: FakeCluster) -> None:
    serve(cluster, "--num-requests", 3, "--prompt-tokens", 8, "--warmup", 3)
    prompts = {tuple(request.token_ids.ids) for request in cluster.inference.requests}
    assert len(prompts) == 6


def test_a_seed_repeats_the_load(cluster: FakeCluster) -> None:
    arguments = ("--num-requests", 3, "--prompt-tokens", "4-9", "--warmup", 0, "--concurrency", 1)
    for seed in (5, 5, 6):
        found = json.loads(serve(cluster, *arguments, "--seed", seed, "--json").stdout)
        assert found["seed"] == seed
    prompts = [tuple(request.token_ids.ids) for request in cluster.inference.requests]
    assert prompts[:3] == prompts[3:6]
    assert prompts[6:] != prompts[:3]


def test_a_trace_is_shortened_to_the_model(cluster: FakeCluster, trace: Path) -> None:
    arguments = ("--trace", trace, "--warmup", 0, "--speedup", 10)
    found = json.loads(serve(cluster, *arguments, "--json").stdout)
    assert (found["requests"], found["shortened"]) == (2, 1)
    assert prompt_lengths(cluster) == [20, 62]
    assert "1 request" in serve(cluster, *arguments).stdout


def test_an_objective_nobody_can_keep(cluster: FakeCluster) -> None:
    result = serve(cluster, "--num-requests", 2, "--ttft-slo-ms", 0.000001, "--json")
    assert json.loads(result.stdout)["goodput_requests_per_s"] == 0
    shown = serve(cluster, "--num-requests", 2, "--ttft-slo-ms", 5, "--itl-slo-ms", 2).stdout
    assert "TTFT ≤ 5 ms, mean ITL ≤ 2 ms" in shown


def test_a_server_that_refuses_fails_the_warm_up(cluster: FakeCluster) -> None:
    cluster.inference.refuse = Overloaded("full")
    result = serve(cluster, "--num-requests", 2)
    assert result.exit_code == 1
    assert result.stderr.endswith("error: full\n")


def test_errors_are_counted_and_shown(cluster: FakeCluster) -> None:
    cluster.inference.refuse = Overloaded("full")
    result = serve(cluster, "--num-requests", 2, "--warmup", 0, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert (found["requests"], found["errors"]) == (2, 2)
    assert found["errors_by_code"] == {"overloaded": 2}
    shown = serve(cluster, "--num-requests", 2, "--warmup", 0).stdout
    assert "2 of 2 requests failed: 2 overloaded" in shown
    assert "the first: overloaded: full" in shown


def test_one_error_among_successes_is_no_failure(cluster: FakeCluster) -> None:
    cluster.inference.die_after = 1  # once, and the client has no other router
    arguments = ("--num-requests", 3, "--concurrency", 1, "--warmup", 0, "--output-tokens", 3)
    result = serve(cluster, *arguments, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["requests"] == 3
    assert found["errors"] + found["output_tokens"] // 3 == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompt-tokens", "0"),
        ("--prompt-tokens", "9-3"),
        ("--prompt-tokens", "many"),
        ("--rate", "0"),
        ("--speedup", "2"),
        ("--num-requests", "0"),
        ("--protocol", "smoke"),
    ],
)
def test_wrong_usage(cluster: FakeCluster, arguments: tuple[str, str]) -> None:
    result = serve(cluster, *arguments)
    assert result.exit_code == 2
    assert cluster.inference.requests == []


def test_arrivals(trace: Path) -> None:
    """From the trace, sped up; replaced by --rate; none in a closed loop."""
    assert [each.due_s for each in plan(LoadSettings(trace=trace, speedup=3))] == [0.0, 0.01]
    assert [each.due_s for each in plan(LoadSettings(trace=trace, rate=0.5))][1] not in (None, 0.03)
    closed = plan(LoadSettings(num_requests=2, prompt_tokens=Lengths(1, 1)))
    assert [each.due_s for each in closed] == [None, None]
    assert len(plan(LoadSettings())) == 64
    assert len(plan(LoadSettings(trace=trace))) == 2
    assert len(plan(LoadSettings(trace=trace, num_requests=1))) == 1
