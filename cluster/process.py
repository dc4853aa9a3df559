"""A process of this machine with its log: started, watched, stopped, and never left behind.

It knows command lines, not what is inside a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # looked up here: between fork and exec only what is at hand is safe
_STOP_GRACE_S = 10.0

Flags = Mapping[str, object]


@dataclass(slots=True)
class Process:
    """One process; its log file holds everything it printed."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def log_tail(self, num_lines: int = 20) -> str:
        return log_tail(self.log, num_lines)

    def stop(self, grace_s: float = _STOP_GRACE_S) -> int:
        """SIGTERM, and SIGKILL where that does not help. Returns the exit code."""
        if self.alive:
            self.popen.terminate()
        try:
            return self.popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes live: their logs' `folder`, what their environment has beside this process's, and
    whether they print to their logs (`quiet`) or here."""

    folder: Path
    environment: Mapping[str, str]
    quiet: bool = True

    def start(self, name: str, command: str, options: Sequence[str]) -> Process:
        """`baton <command> <options>`. It ends with the thread that called, if not before (Linux)."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "cli.main", command, *options],
                stdin=subprocess.DEVNULL,
                stdout=output if self.quiet else None,
                stderr=output if self.quiet else None,
                env={**os.environ, **self.environment},
                process_group=0,  # Ctrl-C is for whoever started it, who then ends it
                preexec_fn=_die_with_parent,
            )
        return Process(name, popen, log)


def log_tail(log: Path, num_lines: int = 20) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-num_lines:])


def arguments(flags: Flags) -> list[str]:
    """Options of a command line from their names: True is a bare flag, a list repeats it."""
    words: list[str] = []
    for name, value in flags.items():
        option = "--" + name.replace("_", "-")
        values = value if isinstance(value, list | tuple) else [value]
        for each in values:
            if each is True:
                words.append(option)
            elif each is not None and each is not False:
                words += [option, str(each)]
    return words


def free_port(host: str = "127.0.0.1") -> int:
    with contextlib.closing(socket.create_server((host, 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """No orphans, however the parent ends (Linux; elsewhere a parent that is killed leaves them)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
