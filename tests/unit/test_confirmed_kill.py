"""A confirmed kill returns when the process has ended, whatever state that was in."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cluster.confirmed_kill import ended, kill_confirmed


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """It ignores SIGTERM."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("before", [None, signal.SIGTERM, signal.SIGSTOP])
def test_when_it_returns_the_process_has_ended(
    sleeper: subprocess.Popen[bytes], before: signal.Signals | None
) -> None:
    if before is not None:
        sleeper.send_signal(before)
    kill_confirmed(sleeper.pid)
    # Nobody has waited for it yet, so it is still in the table: as a zombie, which runs no more.
    state = Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0]
    assert state == "Z"
    assert sleeper.wait(0) == -signal.SIGKILL


def test_killing_what_is_gone_is_no_error(sleeper: subprocess.Popen[bytes]) -> None:
    kill_confirmed(sleeper.pid)
    kill_confirmed(sleeper.pid)
    sleeper.wait()
    kill_confirmed(sleeper.pid)


async def test_the_end_is_seen_and_not_before(sleeper: subprocess.Popen[bytes]) -> None:
    waiting = asyncio.create_task(ended(sleeper.pid))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    sleeper.kill()
    async with asyncio.timeout(5):
        await waiting
    assert sleeper.wait(0) == -signal.SIGKILL
    async with asyncio.timeout(5):
        await ended(sleeper.pid)
