"""A process of this machine with its log: started, watched, stopped, and never left behind.

It knows command lines, not what is inside a process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_STOP_GRACE_S = 10.0

Flags = Mapping[str, object]


class Popen(Protocol):
    """What is used of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(slots=True)
class Process:
    """One process; its log file holds everything it printed."""

    name: str
    popen: Popen
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
            popen = spawn(
                [command, *options], self.environment, output.fileno() if self.quiet else None
            )
        return Process(name, popen, log)


def spawn(words: Sequence[str], environment: Mapping[str, str], output: int | None) -> Popen:
    """`baton <words>` with `environment` beside this process's own, printing to `output` or here."""
    return subprocess.Popen(
        [sys.executable, "-m", "baton.cluster.child", str(os.getpid()), *words],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env={**os.environ, **environment},
        process_group=0,  # Ctrl-C is for whoever started it, who then ends it
    )


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
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.create_server((host, 0), family=family)) as listener:
        port: int = listener.getsockname()[1]
        return port
