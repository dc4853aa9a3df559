"""The transports of the conformance suite. Every test leaves no file in /dev/shm and no thread."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transfer.points import BLOCKS, LAYOUT, TRANSFER
from tests.transfer.worlds import Decode, make_decode


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    shm = Path("/dev/shm")
    files, threads = set(shm.iterdir()), set(threading.enumerate())
    yield
    give_up_s = time.monotonic() + 10
    while left := set(threading.enumerate()) - threads:
        assert time.monotonic() < give_up_s, f"{left} still run"
        time.sleep(0.01)
    while fresh := {file for file in set(shm.iterdir()) - files if not is_of_others(file)}:
        assert time.monotonic() < give_up_s, f"{fresh} were left"
        time.sleep(0.01)


def is_of_others(file: Path) -> bool:
    """Whether another process maps it: tests run side by side."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if int(maps.parent.name) != os.getpid() and str(file) in maps.read_text():
                return True
        except OSError:
            continue  # it has ended, or is somebody else's
    return False


@pytest.fixture
def decode(kind: str) -> Iterator[Decode]:
    """A decode rank that waits for the transfer of `points`."""
    made = make_decode(kind, LAYOUT)
    made.receiver.open(TRANSFER, BLOCKS)
    yield made
    made.receiver.close()
