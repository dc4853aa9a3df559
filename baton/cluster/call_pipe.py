"""Calls into a process of ours that may end at any moment: by name, many at a time, over a pair of sockets.

    caller: CallPipe.call("name", ...) ---> answer_calls(connection, target): target.name(...)

Either side's end is seen by the other at once. It knows nothing of what is called.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baton.errors import BatonError, Internal, from_code


class Lost(Exception):
    """The called process has ended; whether it did what was asked is not known."""


@dataclass(frozen=True, slots=True)
class _Call:
    number: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """`error`: code, message and field of a BatonError."""

    number: int
    value: Any = None
    error: tuple[str, str, str] | None = None


class CallPipe:
    """`python -m <module> DESCRIPTOR`, which is to call `answer_calls`. It has a process group of its own,
    as Ctrl-C is not for it, and prints to `log`."""

    def __init__(self, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        theirs.close()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._lost = False
        self._reader = threading.Thread(target=self._read, name=module, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def call(self, method: str, *arguments: object) -> Future[Any]:
        """The answer: what `method` returned, a BatonError, or Lost."""
        answer: Future[Any] = Future()
        with self._lock:
            if self._lost:
                answer.set_exception(Lost())
                return answer
            call = _Call(next(self._numbers), method, arguments)
            self._waiting[call.number] = answer
            self._send(call)
        return answer

    def end(self, grace_s: float) -> None:
        """Tells it to leave, and kills it where it has not within `grace_s`. It has ended afterwards."""
        with self._lock:
            self._send(None)
        try:
            self._popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._reader.join()

    def _send(self, message: _Call | None) -> None:
        try:
            self._connection.send(message)
        except OSError:
            return  # it has ended: the reader sees it, too, and fails what waits

    def _read(self) -> None:
        while True:
            try:
                answer: _Answer = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._lock:
                waiting = self._waiting.pop(answer.number)
            if not waiting.set_running_or_notify_cancel():
                continue  # nobody wants it any more
            if answer.error is None:
                waiting.set_result(answer.value)
            else:
                code, message, field = answer.error
                waiting.set_exception(from_code(code, message, field=field))
        with self._lock:
            self._lost = True
            waiting_ones = list(self._waiting.values())
        for each in waiting_ones:
            if each.set_running_or_notify_cancel():
                each.set_exception(Lost())
        self._connection.close()


def answer_calls(connection: Connection, target: object) -> None:
    """Until the caller leaves or ends. The first call is answered on this thread before any other is read,
    each further one on a thread of its own."""
    lock = threading.Lock()

    def answer(call: _Call) -> None:
        reply = _answered(target, call)
        with lock:
            connection.send(reply)

    first = True
    while (call := _received(connection)) is not None:
        if first:
            answer(call)
        else:
            threading.Thread(target=answer, args=(call,), daemon=True, name=call.method).start()
        first = False


def _received(connection: Connection) -> _Call | None:
    try:
        call: _Call | None = connection.recv()
    except (EOFError, OSError):
        return None
    return call


def _answered(target: object, call: _Call) -> _Answer:
    try:
        return _Answer(call.number, getattr(target, call.method)(*call.arguments))
    except BatonError as error:
        return _Answer(call.number, error=(error.code, error.message, error.field))
    except Exception as error:
        return _Answer(call.number, error=(Internal("").code, repr(error), ""))
