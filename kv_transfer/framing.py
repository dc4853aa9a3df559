"""msgpack maps over one TCP connection. Knows nothing of what they mean."""

from __future__ import annotations

import select
import socket
import struct
from typing import Any

from baton.errors import IncompatiblePeer, PeerLost
from kv_transfer import wire_format

_LENGTH = struct.Struct("<I")
_MAX_BYTES = 1 << 24

# A peer whose machine has vanished closes nothing: the kernel asks after this much silence.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 2, socket.TCP_KEEPINTVL: 1, socket.TCP_KEEPCNT: 3}


class Connection:
    """One end. One thread may send while another receives; PeerLost where the other end is gone."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
        self._socket = connected

    @classmethod
    def connect(cls, host: str, port: int, timeout_s: float) -> Connection:
        try:
            return cls(socket.create_connection((host, port), timeout_s))
        except OSError as error:
            raise PeerLost(f"cannot connect to {host}:{port}: {error}") from error

    @property
    def local_host(self) -> str:
        """The address by which the other end sees this one."""
        return str(self._socket.getsockname()[0])

    def send(self, fields: dict[str, Any], timeout_s: float) -> None:
        data = wire_format.pack(fields)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise PeerLost(f"the connection broke: {error}") from error

    def receive(self, timeout_s: float | None, **kinds: type) -> dict[str, Any]:
        """The next map, with at least the fields `kinds`; without a timeout it waits for ever."""
        try:
            self._socket.settimeout(timeout_s)
            (size_bytes,) = _LENGTH.unpack(self._read(_LENGTH.size))
            if size_bytes > _MAX_BYTES:
                raise IncompatiblePeer(f"is announced to have {size_bytes} bytes", field="message")
            return wire_format.unpack(self._read(size_bytes), **kinds)
        except OSError as error:
            raise PeerLost(f"the connection broke: {error}") from error

    def has_more(self, wait_ms: int = 0) -> bool:
        """Whether `receive` finds the beginning of a map, or the connection's end, within that time."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(wait_ms))

    def has_ended(self) -> bool:
        """Whether the other end has closed the connection, or it broke, whatever lies unread before."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def shut_down(self) -> None:
        """Ends the connection for both ends, and wakes whoever waits in `receive`. Any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the other end was faster

    def close(self) -> None:
        self._socket.close()

    def _read(self, size_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < size_bytes:
            part = self._socket.recv(size_bytes - len(parts))
            if not part:
                raise PeerLost("the other end closed the connection")
            parts += part
        return bytes(parts)
