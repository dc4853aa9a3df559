"""The benchmarks that start what they need, as commands, at their smallest: that they run, answer in
the promised form and leave nothing (the session's fixture sees to that). Speeds are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from baton.bench.arrangements import two_cores
from baton.errors import ConfigError

ROOT = Path(__file__).parents[2]


def has_two_cores() -> bool:
    try:
        two_cores()
    except ConfigError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_two_cores(), reason="needs two cores"),
]


def bench(*arguments: object) -> dict[str, Any]:
    """The JSON that `baton bench` ends with."""
    command = [sys.executable, "-m", "baton.cli.main", "bench", *map(str, arguments), "--json"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_ttft(checkpoint: Path) -> None:
    found = bench("ttft", "--model", checkpoint, "--prompts", "16,100", "--rounds", 1)
    assert [row["prompt_tokens"] for row in found["rows"]] == [16, 100]
    for row in found["rows"]:
        keys = {"aggregated_ms", "disaggregated_ms", "ratio", "ci95", "n", "exposed_ms"}
        assert keys | {"bytes_moved"} <= set(row)
        assert row["aggregated_ms"] > 0
        assert row["disaggregated_ms"] > 0
        assert (row["bytes_moved"] > 0) == (row["num_remote"] > 0)


def test_faces(checkpoint: Path) -> None:
    found = bench("faces", "--model", checkpoint, "--prompts", "4,20", "--rounds", 1)
    assert [row["prompt_words"] for row in found["rows"]] == [4, 20]
    for row in found["rows"]:
        assert row["n"] == 1
        for name in ("grpc_ms", "http_ms", "plain_ms", "over", "agreement"):
            assert row[name] > 0


def test_interference(checkpoint: Path) -> None:
    windows = ("--quiet", 0.2, "--loaded", 0.2, "--rounds", 1)
    options = ("--streams", 2, "--prompt-tokens", 100, "--chunk-budgets", "32")
    found = bench("interference", "--model", checkpoint, *options, *windows)
    assert found["aggregated"]["chunk_budget"] == 32
    assert found["aggregated"]["transfers"] == 0
    for side in (found["disaggregated"], found["aggregated"]):
        for name in ("itl_ms_quiet", "itl_ms_loaded"):
            assert 0 < side[name]["p50"] <= side[name]["p99"]
        assert side["ratio_p99"] > 0
        assert side["prompt_ttft_ms"] > 0
        assert side["tokens_per_s"] > side["output_tokens_per_s"] > 0
        assert side["transfers"] <= side["prompts"]


def test_engine() -> None:
    sizes = ("--prompt-tokens", 8, "--output-tokens", 4, "--pairs", 1)
    found = bench("engine", "--shapes", "llama-125m", "--batches", 2, "--threads", 1, *sizes)
    [row] = found["rows"]
    assert (row["shape"], row["batch"], row["threads"], row["n"]) == ("llama-125m", 2, 1, 1)
    # 12 layers of 2 * 768 * 768 + 2 * 768 * 256 + 3 * 768 * 2048, and the head, in fp16.
    assert row["weight_bytes_per_step"] == 2 * (12 * 6_291_456 + 32_000 * 768)
    for name in ("baton_tokens_per_s", "transformers_tokens_per_s", "read_gb_per_s"):
        assert row[name] > 0
    assert row["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("engine", "--shapes", "llama-1m"), "llama-1m"),
        (("engine", "--batches", "0"), "below 1"),
        (("ttft", "--prompts", "32,many"), "32,many"),
        (("interference", "--rounds", "0"), "rounds"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], named: str) -> None:
    command = [sys.executable, "-m", "baton.cli.main", "bench", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert named in result.stderr
