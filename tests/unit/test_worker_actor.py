"""What a worker's actor does when its worker has ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SERVES = """
import sys
from decode_worker.config import DecodeConfig
from baton.worker import actor
actor._run = lambda role, config: actor.Outcome()
print(actor.WorkerActor(actor.Launch("", DecodeConfig())).serve(), flush=True)
sys.stdin.read()
"""


def test_it_ends_also_where_nobody_ends_it() -> None:
    """As where Ray was told to end at the same moment, and passes nothing on."""
    command = [sys.executable, "-c", SERVES]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        try:
            assert it.stdout is not None
            assert it.stdout.readline() == b"Outcome(code='', message='', field='')\n"
            assert it.wait(30) == 0
        finally:
            it.kill()
