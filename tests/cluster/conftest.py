"""What the tests with real processes share: a small checkpoint, clusters, and that nothing is left.

Importing torch costs a process seconds, so modules share clusters wherever they ask for the same one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cluster.local import LocalCluster
from tests.checkpoints import make_checkpoint
from tests.cluster.watching import processes_of
from tests.warm import forked_processes


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No process and no temporary file outlives the clusters of this session."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")  # of tiny models: more threads only wait
        with forked_processes():
            yield folder
    assert processes_of(folder) == []
    assert list(folder.glob("baton-*")) == []


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "small", "llama")


@pytest.fixture(scope="session")
def served(checkpoint: Path, temporary_folder: Path) -> Iterator[LocalCluster]:
    """A router and a worker for tests that leave them as they were."""
    with LocalCluster(
        str(checkpoint), worker_flags={"deterministic": True, "num_blocks": 256}
    ) as cluster:
        yield cluster
