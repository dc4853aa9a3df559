"""A worker that loads a large model says how far it is, and whoever started it hears so."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from baton.cluster import reconcile
from baton.cluster.loading import Loading
from baton.worker.loading import LoggedProgress

FORMAT = logging.Formatter("%(asctime)s decode-0 %(levelname)s %(name)s: %(message)s")


def test_progress_is_told_as_it_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    progress, loading = LoggedProgress(lambda: now_s), Loading(tmp_path)
    starting = {"decode-0": reconcile.started("decode-0", None, 0.0)}
    told: list[str] = []
    with caplog.at_level(logging.INFO, "baton.worker.loading"):
        for done in range(0, 101, 10):
            progress(done * 10**8, 10**10)
            lines = [FORMAT.format(record) for record in caplog.records]
            (tmp_path / "decode-0.log").write_text("\n".join(["it starts", *lines, ""]))
            told += loading.news(starting)
            now_s += 0.5
    assert told == [f"decode-0 has loaded {percent} % of 10.0 GB" for percent in (40, 80)]
    running = {"decode-0": reconcile.answered(starting["decode-0"], 1.0)}
    assert list(Loading(tmp_path).news(running)) == []


def test_who_has_no_log_here_says_nothing(tmp_path: Path) -> None:
    starting = {"decode-0": reconcile.started("decode-0", None, 0.0)}
    assert list(Loading(tmp_path).news(starting)) == []
