"""Which threads a loaded engine leaves behind: none of OpenMP's, which would slow those of its steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint

# In a process of its own, in which nothing else starts threads. Prints how many there are.
COUNTED = """
import os, sys, torch
from baton.engine.config import EngineConfig
from baton.engine.runner import ModelRunner
from baton.engine.openmp import release_team

def count():
    return len(os.listdir("/proc/self/task"))

def compute():
    torch.ones(1 << 20).add_(1)

torch.set_num_threads(2)  # gives another pool of torch's its thread
before = count()
compute()
computed = count()
release_team()
released = count()
ModelRunner.load(EngineConfig(model=sys.argv[1], num_threads=2, num_blocks=1000))
loaded = count()
compute()
print(before, computed, released, loaded, count())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_load_leaves_no_threads(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", "llama")
    command = [sys.executable, "-c", COUNTED, str(checkpoint)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    before, computed, released, loaded, again = map(int, ran.stdout.split())
    assert computed == before + 1
    assert released == before
    assert loaded == before
    assert again == before + 1, "it can compute again"
