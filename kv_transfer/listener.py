"""How a prefill rank finds a decode rank that has to hear from it: a port, a token, a connection per pair;
and what the receivers share that are found so.

    P                                        D
    greet(offer) ---- token, layout ------>  one thread per writer: serve(connection, layout)

The connection stays: its end is the end of the pair, on either side.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from baton.errors import ConfigError, IncompatiblePeer, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import Revocation, TransferId
from kv_transfer.framing import Connection
from kv_transfer.layout import PoolLayout
from kv_transfer.permissions import Permissions
from kv_transfer.pool import Pool

log = logging.getLogger(__name__)

Serve = Callable[[Connection, PoolLayout], None]

_ACCEPT_AGAIN_S = 0.1  # where the machine lacks what a connection takes: others give it back


class Listener:
    """Listens on `host`, an address of this machine; writers are told `told_host` where they reach it by
    another one. `serve` returns, or raises PeerLost or IncompatiblePeer, when its writer is gone."""

    def __init__(self, host: str, timeout_s: float, serve: Serve, told_host: str = "") -> None:
        self._host = told_host or host
        self._timeout_s = timeout_s
        self._serve_writer = serve
        self._token = secrets.token_bytes(16)
        self._closing = threading.Event()
        self._lock = threading.Lock()  # guards what is below
        self._connections: dict[Connection, threading.Thread] = {}
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}: {error}", field="host") from error
        threading.Thread(target=self._accept, name="kv-accept", daemon=True).start()

    def offer(self) -> dict[str, Any]:
        """What `greet` needs, as fields of an offer."""
        port = self._listener.getsockname()[1]
        return {"host": self._host, "port": port, "token": self._token}

    def close(self) -> None:
        """Ends every connection, and waits for those who serve them."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            serving = dict(self._connections)
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        for connection in serving:
            connection.shut_down()
        for thread in serving.values():
            thread.join(self._timeout_s)

    def _accept(self) -> None:
        """Until closed. A connection that fails is its writer's loss, and a lack of descriptors, memory or
        threads passes: who comes later is served."""
        while not self._closing.is_set():
            try:
                accepted, _ = self._listener.accept()
                self._admit(accepted)
            except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
                if not self._closing.is_set():
                    log.warning("a writer could not be let in: %s", error)
                    self._closing.wait(_ACCEPT_AGAIN_S)

    def _admit(self, accepted: socket.socket) -> None:
        """Serves it on a thread of its own. Whatever goes wrong closes it."""
        with ExitStack() as undo:
            undo.callback(accepted.close)
            connection = Connection(accepted)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="kv-receive", daemon=True
            )
            with self._lock:
                if self._closing.is_set():
                    return
                thread.start()
                self._connections[connection] = thread
            undo.pop_all()

    def _serve(self, connection: Connection) -> None:
        try:
            hello = connection.receive(self._timeout_s, token=bytes, layout=dict)
            if not hmac.compare_digest(hello["token"], self._token):
                raise IncompatiblePeer("is not that of our offer", field="token")
            self._serve_writer(connection, wire_format.unpack_layout(hello["layout"]))
        except (PeerLost, IncompatiblePeer) as error:
            log.info("a writer is gone: %s", error)
        except Exception:
            log.exception("receiving from a writer failed")
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(connection, None)


class ListeningReceiver:
    """A `Receiver` that every writer asks before each portion. `serve` runs on the thread of one writer."""

    def __init__(
        self, pool: Pool, host: str, timeout_s: float, serve: Serve, told_host: str = ""
    ) -> None:
        self._pool = pool
        self._permissions = Permissions()
        self._listener = Listener(host, timeout_s, serve, told_host)

    def offer(self, **more: Any) -> bytes:
        layout = wire_format.pack_layout(self._pool.layout)
        return wire_format.pack({**self._listener.offer(), "layout": layout, **more})

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        self._permissions.open(transfer, blocks)

    def revoke(self, transfer: TransferId) -> Revocation:
        return self._permissions.revoke(transfer)

    def close(self) -> None:
        self._listener.close()


def greet(offer: dict[str, Any], layout: PoolLayout, timeout_s: float) -> Connection:
    """Connects to the listener of `offer` and says what is written from. PeerLost where nobody listens."""
    connection = Connection.connect(offer["host"], offer["port"], timeout_s)
    try:
        hello = {"token": offer["token"], "layout": wire_format.pack_layout(layout)}
        connection.send(hello, timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


OFFER = {"host": str, "port": int, "token": bytes}  # the fields of an offer that `greet` reads
