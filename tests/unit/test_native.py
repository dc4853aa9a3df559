"""Compiling own C sources: cached, safe among processes, and no more than a log line when it fails."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from baton import native

ROOT = Path(__file__).parents[2]
SOURCE = "int answer(void) { return 42; }\n"

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler on this machine"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package's folder with one source; the cache lies in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    monkeypatch.delenv("CC", raising=False)
    kernels = tmp_path / "room" / "kernels"
    kernels.mkdir(parents=True)
    (kernels / "answer.c").write_text(SOURCE)
    native.load.cache_clear()
    return kernels


def built(folder: Path) -> list[Path]:
    return sorted((folder.parents[1] / "cache" / "baton").iterdir())


@needs_compiler
def test_builds_once_and_again_when_the_source_changes(folder: Path) -> None:
    library = native.load(folder)
    assert library is not None
    assert library.answer() == 42
    (first,) = built(folder)
    stamp = first.stat().st_mtime_ns

    native.load.cache_clear()  # as in another process
    assert native.load(folder) is not None
    assert first.stat().st_mtime_ns == stamp

    (folder / "answer.c").write_text(SOURCE.replace("42", "43"))
    native.load.cache_clear()
    changed = native.load(folder)
    assert changed is not None
    assert changed.answer() == 43
    assert len(built(folder)) == 2


@needs_compiler
def test_many_processes_may_build_at_once(folder: Path) -> None:
    program = (
        "import sys, pathlib; from baton import native;"
        "print(native.load(pathlib.Path(sys.argv[1])).answer())"
    )
    command = [sys.executable, "-c", program, str(folder)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0] for process in running] == [b"42\n"] * 4
    assert len(built(folder)) == 1


def test_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.SWITCH, "off")
    assert native.load(folder) is None
    assert not (folder.parents[1] / "cache").exists()


def test_no_compiler_is_logged_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.WARNING):
        assert native.load(folder) is None
        assert native.load(folder) is None
    (record,) = caplog.records
    assert "no C compiler" in record.getMessage()


def test_named_compiler_that_is_absent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.load(folder) is None
    assert "no-such-compiler" in caplog.text


@needs_compiler
def test_what_the_compiler_said_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "answer.c").write_text("int answer(void) { return forty_two; }\n")
    assert native.load(folder) is None
    assert "forty_two" in caplog.text
    assert built(folder) == []


@needs_compiler
def test_cache_folder_that_cannot_be_written(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder.parents[1] / "cache").write_text("a file where a folder should be")
    assert native.load(folder) is None
    assert "cache" in caplog.text
