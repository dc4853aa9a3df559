"""What every test shares: tests marked `gpu` are skipped where torch sees no CUDA device."""

import os

import pytest

# Ray's processes are forked from one that has gRPC's threads: its handlers would wait for them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: unit tests run without torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
