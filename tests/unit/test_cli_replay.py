"""`baton replay` and `baton bench router` as commands."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from baton.bench.profiles import read_profile, write_profile
from baton.cli.main import main
from baton.planner.profile import MOCKER

KEYS = {"requests", "reuse_ratio", "ttft_ms", "itl_ms", "e2e_ms", "imbalance", "wall_s"}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl.gz"
    lines = [
        {
            "timestamp": 1000 * number,
            "input_length": 2000,
            "output_length": 5,
            "hash_ids": [0, 1, 2, 3 + number],
        }
        for number in range(20)
    ]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, lines)))
    return path


def replay(*arguments: object) -> Any:
    result = CliRunner().invoke(main, ["replay", *map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_the_figures_of_a_trace(trace: Path) -> None:
    code, shown = replay(trace, "--prefill", 2, "--decode", 1)
    assert code == 0
    assert set(shown) >= KEYS
    assert set(shown["ttft_ms"]) == {"mean", "p50", "p90", "p99"}
    assert shown["requests"] == 20
    assert shown["reuse_ratio"] == pytest.approx(19 * 1536 / 40_000)
    _, other = replay(trace, "--prefill", 2, "--decode", 1, "--policy", "round_robin")
    assert other["reuse_ratio"] < shown["reuse_ratio"]


def test_what_no_worker_can_hold_is_refused_and_holds_up_nobody(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lengths = [(100, 10), (5120, 1), (5119, 1), (6000, 5), (1, 5120), (100, 10)]
    path.write_text(
        "\n".join(
            json.dumps({"timestamp": number, "input_length": prompt, "output_length": output})
            for number, (prompt, output) in enumerate(lengths)
        )
    )
    for policy in ("baton", "round_robin"):
        code, shown = replay(path, "--blocks", 10, "--policy", policy)
        assert code == 0
        assert (shown["requests"], shown["num_refused"]) == (3, 3)
    path.write_text(json.dumps({"timestamp": 0, "input_length": 9999, "output_length": 1}))
    assert replay(path, "--blocks", 10)[1]["num_refused"] == 1


def test_a_plot_is_a_picture(trace: Path, tmp_path: Path) -> None:
    code, _ = replay(trace, "--plot", tmp_path / "plot.png")
    assert code == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--profile", "abacus"], "profile"),
        (["--profile", "nowhere.json"], "nowhere.json"),
        (["--block-size", "100"], "block_size"),
    ],
)
def test_what_cannot_be_simulated_is_refused(trace: Path, arguments: list[str], field: str) -> None:
    code, shown = replay(trace, *arguments)
    assert code == 1
    assert shown["error"]["field"] == field


def test_a_profile_survives_its_file(tmp_path: Path, trace: Path) -> None:
    path = tmp_path / "engine.json"
    write_profile(MOCKER, path)
    assert read_profile(path) == MOCKER
    _, by_file = replay(trace, "--profile", path)
    _, by_name = replay(trace)
    assert by_file["ttft_ms"] == by_name["ttft_ms"]


def test_decisions_are_measured() -> None:
    arguments = ["bench", "router", "--only", "decisions", "--workers", "20", "--blocks", "20000"]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout.splitlines()[-1])
    assert set(shown["decision_us"]) == {"p50", "p99"}
    assert 0 < shown["decision_us"]["p50"] <= shown["decision_us"]["p99"]
    assert shown["hashing_us"] > 0
    assert shown["tokenize_us"] > 0
