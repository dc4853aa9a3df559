"""Where a cluster's routers listen, and where workers and users find them. Pure, but for choosing free ports.

On a Ray cluster that was joined, workers may run on other machines than this one. A loopback is of no use to
them, so there routers listen at this node's own address, by which Ray's other nodes know it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from baton.cluster.process import free_port
from baton.rpc.server import address_of
from router.config import RouterConfig


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """`listen`: the host it is told. `host`: as others reach it."""

    listen: str
    host: str
    grpc: int
    http: int

    @property
    def address(self) -> str:
        return address_of(self.host, self.grpc)

    @property
    def base_url(self) -> str:
        """Of the OpenAI-compatible API."""
        return f"http://{address_of(self.host, self.http)}/v1"


def choose(router: RouterConfig, names: Iterable[str], node: str = "") -> dict[str, RouterPorts]:
    """`node`: this node's address on a joined Ray. Port 0 is any free one; a second router has the numbers
    after those of the first."""
    listen = router.host
    if node and _is_loopback(listen):
        listen = node
    host = _reached(listen, node)
    return {
        name: RouterPorts(
            listen,
            host,
            router.grpc_port + index if router.grpc_port else free_port(listen),
            router.http_port + index if router.http_port else free_port(listen),
        )
        for index, name in enumerate(names)
    }


def _reached(listen: str, node: str) -> str:
    """Who listens everywhere is reached at this node's address, or where there is none by the loopback."""
    address = _parsed(listen)
    if address is None or not address.is_unspecified:
        return listen
    return node or ("127.0.0.1" if address.version == 4 else "::1")


def _is_loopback(host: str) -> bool:
    address = _parsed(host)
    return host == "localhost" if address is None else address.is_loopback


def _parsed(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None: it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
