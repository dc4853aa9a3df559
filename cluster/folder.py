"""A cluster's own folder under the temporary directory, and the processes that belong to it.

Everything that a cluster writes is in its folder, and every process that it starts, or that those start,
carries the folder's name in its environment. So a janitor, a process of its own, can clean up whatever
went wrong, also when this process is killed.

    python -m cluster.folder FOLDER     the janitor: waits until its standard input ends
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.confirmed_kill import kill_confirmed

_MARK = "BATON_CLUSTER"
_LONGEST_PARENT = 24  # Ray's sockets lie 80 characters deeper, and a socket's path holds 107


class ClusterFolder:
    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST_PARENT:
            parent = "/tmp"
        self.path = Path(tempfile.mkdtemp(prefix="baton-up-", dir=parent))
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "cluster.folder", str(self.path)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            process_group=0,  # Ctrl-C is not for it
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """What marks a process as belonging to this cluster."""
        return {_MARK: str(self.path)}

    def clean(self) -> None:
        """Ends what still runs, and removes the folder."""
        self._janitor.communicate()  # the end of its input, which this process's death would be, too


def _marked(folder: Path) -> Iterator[int]:
    """Living processes with the mark (Linux; elsewhere none are found)."""
    mark = f"{_MARK}={folder}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            if mark in environ.read_bytes().split(b"\0"):
                yield int(environ.parent.name)


def _clean(folder: Path) -> None:
    while pids := list(_marked(folder)):  # again, for those that others started meanwhile
        for pid in pids:
            kill_confirmed(pid)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()
    _clean(Path(sys.argv[1]))
