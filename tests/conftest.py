"""What every test shares: tests marked `gpu` are skipped where torch sees no CUDA device."""

import os
from collections.abc import Iterator

import pytest

# Ray's processes are forked from one that has gRPC's threads: its handlers would wait for them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def pytest_configure(config: pytest.Config) -> None:
    """How long examples take says only how busy the machine is. A GPU machine may have no hypothesis."""
    if not config.pluginmanager.has_plugin("hypothesispytest"):
        return
    from hypothesis import HealthCheck, settings

    settings.register_profile("baton", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("baton")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deaths", type=int, default=3, help="kills of each role under load (make deaths: 10)"
    )


@pytest.fixture(autouse=True)
def environment_kept() -> Iterator[None]:
    """What a test sets for Baton's processes, it sets for its own."""
    before = {name: value for name, value in os.environ.items() if name.startswith("BATON_")}
    yield
    after = {name: value for name, value in os.environ.items() if name.startswith("BATON_")}
    assert after == before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch  # only here: unit tests run without torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
