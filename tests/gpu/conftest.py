"""What tests on a GPU share. They run with whatever pytest is there, so a hang is ended without a plugin."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import pytest
import torch

_LIMIT_S = 300.0


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A test that hangs ends the run, with the stack of every thread."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def pools_on_the_gpu(bounded: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Where tests of a transport make a pool, they make it there."""
    if "kind" not in request.fixturenames:
        yield
        return
    torch.set_default_device("cuda")
    yield
    torch.set_default_device("cpu")
