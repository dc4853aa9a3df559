"""The address that others are told: where they reach this worker, which need not be where it listens."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from baton.errors import ConfigError
from baton.worker.config import HostConfig


def told_host(config: HostConfig) -> str:
    """`advertise_address`, else the host that it listens on. Where that is every address of the machine,
    the one by which it reaches its routers, or the store that they read. Raises ConfigError where there is
    none."""
    given = config.advertise_address.strip("[]")
    if given or not _is_every(config.host):
        if _is_every(given or config.host):
            raise ConfigError("is no address that others can call", field="host.advertise_address")
        return given or config.host
    for peer in _peers(config):
        if host := _own_address_towards(peer):
            return host
    raise ConfigError(
        f"is needed: {config.host!r} is no address that others can call, and no router was found to "
        "show which one they can",
        field="host.advertise_address",
    )


def _is_every(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host  # a name is one machine's


def _peers(config: HostConfig) -> Iterable[str]:
    """host:port of whoever it registers with."""
    if config.state != "embedded":
        return [urlsplit(config.state).netloc.rpartition("@")[2]]
    return config.routers


def _own_address_towards(peer: str) -> str:
    """Empty where there is no way. Nothing is sent."""
    host, _, port = peer.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]") or peer, port or None, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            own: str = probe.getsockname()[0]
    except OSError:
        return ""
    return own
