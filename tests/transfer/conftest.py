"""The transports of the conformance suite. Every test leaves no file in /dev/shm and no thread."""

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
    assert set(shm.iterdir()) <= files
    give_up_s = time.monotonic() + 10
    while left := set(threading.enumerate()) - threads:
        assert time.monotonic() < give_up_s, f"{left} still run"
        time.sleep(0.01)


@pytest.fixture
def decode(kind: str) -> Iterator[Decode]:
    """A decode rank that waits for the transfer of `points`."""
    made = make_decode(kind, LAYOUT)
    made.receiver.open(TRANSFER, BLOCKS)
    yield made
    made.receiver.close()
