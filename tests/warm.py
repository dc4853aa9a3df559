"""Routers and workers forked from a process that has imported them: a second or more sooner than new ones.

Importing torch takes most of a small worker's start. multiprocessing's fork server imports once, has one
thread, and forks; what it forks runs `baton` as `baton.cluster.child` does. A process with an environment
of its own is started afresh, since what is imported may have read it.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from subprocess import TimeoutExpired

import pytest

import baton.cluster.process
from baton.cluster.child import end_with_parent
from baton.cluster.process import Popen

_IMPORTED = [
    "baton.cli.router",
    "baton.cli.worker",
    "router.process",
    "decode_worker.process",
    "baton.worker.engine",
]
_IMPORTED += ["prefill_worker.process", "tests.warm"]
_spawn_new = baton.cluster.process.spawn


@dataclass(frozen=True, slots=True)
class _Forked:
    """A forked process, as `subprocess.Popen` shows one."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutExpired(self.process.name, timeout or 0.0)
        return self.process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _spawn(words: Sequence[str], environment: Mapping[str, str], output: int | None) -> Popen:
    if environment or output is None:
        return _spawn_new(words, environment, output)
    return fork(run_baton, words, output)


def fork(
    main: Callable[[list[str], dict[str, str], str], None], words: Sequence[str], output: int
) -> Popen:
    """A process that runs `main`, which is to end in `run_baton` with the same arguments."""
    log = str(Path(f"/proc/self/fd/{output}").readlink())
    process = multiprocessing.get_context("forkserver").Process(
        target=main, args=(list(words), dict(os.environ), log), name=" ".join(words), daemon=True
    )
    process.start()
    return _Forked(process)


def run_baton(words: list[str], environment: dict[str, str], log: str) -> None:
    os.setpgid(0, 0)
    multiprocessing.current_process().daemon = False  # a router may have processes of its own
    end_with_parent(os.getppid())
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    sys.argv = ["baton", *words]
    from baton.cli.main import main

    main(prog_name="baton")


@contextmanager
def forked_processes() -> Iterator[None]:
    """Within, `baton.cluster.process` forks what it starts."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baton.cluster.process, "spawn", _spawn)
        try:
            yield
        finally:
            multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
            multiprocessing.resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]
