"""A cluster's own folder under the temporary directory, and the processes that belong to it.

Everything that a cluster writes is in its folder, and every process that it starts, or that those start,
carries the folder's name in its environment or the raylet's log among its files. So a janitor, a process of
its own, can clean up whatever went wrong, also when this process is killed.

    python -m baton.cluster.folder FOLDER     the janitor: waits until its standard input ends
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from baton.cluster.confirmed_kill import kill_confirmed

_MARK = "BATON_CLUSTER"
_RAYLETS_LOG = "raylet.err"
_LONGEST_PARENT = 24  # Ray's sockets lie 80 characters deeper, and a socket's path holds 107


class ClusterFolder:
    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST_PARENT:
            parent = "/tmp"
        self.path = Path(tempfile.mkdtemp(prefix="baton-up-", dir=parent))
        self._janitor = subprocess.Popen(
            [sys.executable, "-m", "baton.cluster.folder", str(self.path)],
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


def _members(folder: Path) -> Iterator[int]:
    """Living processes of the cluster (Linux; elsewhere none are found)."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours to look at
            if _is_marked(process, folder) or _is_raylets(process, folder):
                yield int(process.name)


def _is_marked(process: Path, folder: Path) -> bool:
    return f"{_MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0")


def _is_raylets(process: Path, folder: Path) -> bool:
    """Whether it has inherited the raylet's log. Ray's agents lose the mark now and then: they give
    themselves titles, which lie where the first of their variables lay, and a raylet passes variables on
    in any order."""
    for opened in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has been closed since
            target = opened.readlink()
            is_log = target.name == _RAYLETS_LOG and target.is_relative_to(folder)
            if is_log and opened.lstat().st_mode & stat.S_IWUSR:  # who follows a log only reads
                return True
    return False


def _clean(folder: Path) -> None:
    while pids := list(_members(folder)):  # again, for those that others started meanwhile
        for pid in pids:
            kill_confirmed(pid)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()
    _clean(Path(sys.argv[1]))
