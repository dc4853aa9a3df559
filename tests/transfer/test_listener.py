"""A receiver's port goes on listening, whatever becomes of single connections."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any

import pytest

from kv_transfer.framing import Connection
from kv_transfer.layout import PoolLayout
from kv_transfer.listener import Listener, greet
from tests.transfer.worlds import SMALL, TIMEOUT_S


class Listening:
    """A socket that listens, on which the first connections fail."""

    def __init__(self, inner: socket.socket, errors: list[Exception]) -> None:
        self._inner = inner
        self._errors = errors

    def accept(self) -> tuple[socket.socket, Any]:
        accepted = self._inner.accept()
        if self._errors:
            accepted[0].close()
            raise self._errors.pop(0)
        return accepted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_writers_are_told_where_they_reach_it() -> None:
    listener = Listener("0.0.0.0", TIMEOUT_S, lambda *_: None, told_host="127.0.0.1")
    try:
        assert listener.offer()["host"] == "127.0.0.1"
    finally:
        listener.close()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)),
        OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: str(error),
)
def test_after_a_connection_that_fails_the_next_is_served(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = threading.Event()

    def serve(connection: Connection, layout: PoolLayout) -> None:
        served.set()

    create, errors = socket.create_server, [error]
    monkeypatch.setattr(
        socket,
        "create_server",
        lambda *where, **how: Listening(create(*where, **how), errors),
    )
    listener = Listener("127.0.0.1", TIMEOUT_S, serve)
    greet(listener.offer(), SMALL, TIMEOUT_S).close()
    assert not served.is_set()
    writer = greet(listener.offer(), SMALL, TIMEOUT_S)
    assert served.wait(30)
    assert not errors
    writer.close()
    listener.close()


def test_a_writer_that_is_gone_when_it_is_let_in_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options cannot be set on a connection that was reset meanwhile."""
    served, made = threading.Event(), Connection.__init__
    failures = [OSError(errno.EINVAL, "Invalid argument")]

    def serve(connection: Connection, layout: PoolLayout) -> None:
        served.set()

    def make(self: Connection, connected: socket.socket) -> None:
        if threading.current_thread().name == "kv-accept" and failures:
            raise failures.pop()
        made(self, connected)

    monkeypatch.setattr(Connection, "__init__", make)
    listener = Listener("127.0.0.1", TIMEOUT_S, serve)
    lost = greet(listener.offer(), SMALL, TIMEOUT_S)
    writer = greet(listener.offer(), SMALL, TIMEOUT_S)
    assert served.wait(30)
    assert not failures
    for connection in (lost, writer):
        connection.close()
    listener.close()
