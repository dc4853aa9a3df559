"""A cluster's own folder under the temporary directory, and the processes that belong to it.

Everything that a cluster writes is in its folder, and every process that it starts, or that those start,
carries the folder's name in its environment. So both can be cleaned up whatever went wrong, also by the
next cluster after one whose owner was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.confirmed_kill import kill_confirmed

_MARK = "BATON_CLUSTER"
_PREFIX = "baton-up-"
_LONGEST_PARENT = 24  # Ray's sockets lie 80 characters deeper, and a socket's path holds 107


class ClusterFolder:
    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        if len(str(parent)) > _LONGEST_PARENT:
            parent = Path("/tmp")
        _remove_stale(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))

    @property
    def environment(self) -> Mapping[str, str]:
        """What marks a process as belonging to this cluster."""
        return {_MARK: str(self.path)}

    def processes(self) -> Iterator[int]:
        """Living processes with the mark (Linux; elsewhere none are found)."""
        mark = f"{_MARK}={self.path}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
                if mark in environ.read_bytes().split(b"\0"):
                    yield int(environ.parent.name)

    def clean(self) -> None:
        """Ends what still runs, and removes the folder."""
        for pid in self.processes():
            kill_confirmed(pid)
        shutil.rmtree(self.path, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Folders whose owners were killed and could not remove them."""
    for folder in parent.glob(f"{_PREFIX}*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
