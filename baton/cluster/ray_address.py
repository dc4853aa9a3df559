"""The address of a Ray cluster to join: what it may be, and whether anything is there."""

from __future__ import annotations

import socket

from baton.errors import ConfigError

AUTO = "auto"  # the one that runs on this machine
_CONNECT_S = 5.0


def check(address: str) -> None:
    """Raises ConfigError unless it is host:port, or "auto"."""
    if address == AUTO:
        return
    scheme, separator, _ = address.partition("://")
    if separator:
        what = "a Ray client's address" if scheme == "ray" else "no address of a Ray head"
        _refuse(f"is {what}; give host:port, as in `ray start --address`: {address!r}")
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        _refuse(f'must be host:port of a Ray head, or "{AUTO}": {address!r}')


def check_reachable(address: str) -> None:
    """Raises ConfigError where the host has no address or nothing listens there: Ray itself would go on
    trying."""
    check(address)
    if address == AUTO:
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: no name at all
        _refuse(f"is not that of a Ray head that runs: {address} ({error})")


def _refuse(message: str) -> None:
    raise ConfigError(message, field="ray_address")
