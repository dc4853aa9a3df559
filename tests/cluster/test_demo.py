"""`make demo` as somebody with a fresh clone sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from baton.cli import demo

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not demo.MODEL.is_dir(), reason="needs the demo model")


def marked_processes() -> list[str]:
    """Whatever a demo has left, of any run."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"\0BATON_DEMO_RUN=" in b"\0" + environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue
    return found


def test_the_demo() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "baton.cli.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    text = result.stdout.partition(demo.PROMPT)[2]
    assert text.count("\n") > 5
    assert text.isascii() is False  # the bars of the timeline
    for shown in (
        f"{demo.MAX_TOKENS} output tokens",
        "prefill_start",
        "from start to first token",
        "nothing is left running",
    ):
        assert shown in text
    assert marked_processes() == []


def test_a_worker_that_cannot_start_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo.MODEL / name).read_bytes())
    monkeypatch.setattr(demo, "MODEL", tmp_path)
    assert demo.main() == 1
    assert "safetensors" in capfd.readouterr().err  # the missing file, from the worker's log
    assert marked_processes() == []


def test_a_missing_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MODEL", tmp_path / "model")
    assert demo.main() == 1
    assert "demo/train.py" in capfd.readouterr().err


def test_ctrl_c_leaves_nothing_running() -> None:
    """A terminal sends SIGINT to the whole group: to the cluster's processes as well."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "baton.cli.demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert b"starting" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert b"Traceback" not in rest
    assert marked_processes() == []
