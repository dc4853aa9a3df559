"""Routers listen where workers and users are told to look."""

from __future__ import annotations

import socket

import pytest

from baton.cluster.router_ports import choose
from router.config import RouterConfig

NODE = "192.0.2.7"


@pytest.mark.parametrize(
    ("host", "node", "listen", "address"),
    [
        ("127.0.0.1", "", "127.0.0.1", "127.0.0.1:5001"),
        ("::1", "", "::1", "[::1]:5001"),
        ("0.0.0.0", "", "0.0.0.0", "127.0.0.1:5001"),
        ("::", "", "::", "[::1]:5001"),
        ("127.0.0.1", NODE, NODE, f"{NODE}:5001"),
        ("localhost", NODE, NODE, f"{NODE}:5001"),
        ("::1", "2001:db8::7", "2001:db8::7", "[2001:db8::7]:5001"),
        ("0.0.0.0", NODE, "0.0.0.0", f"{NODE}:5001"),
        ("192.0.2.8", NODE, "192.0.2.8", "192.0.2.8:5001"),
        ("router.example", NODE, "router.example", "router.example:5001"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1:5001"),
    ],
)
def test_where_routers_listen_and_are_found(
    host: str, node: str, listen: str, address: str
) -> None:
    ports = choose(RouterConfig(host=host, grpc_port=5001, http_port=8001), ["a", "b"], node)
    assert ports["a"].listen == ports["b"].listen == listen
    assert ports["a"].address == address
    assert ports["b"].address == address.replace("5001", "5002")
    assert ports["a"].base_url == f"http://{address.replace('5001', '8001')}/v1"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_0_is_free_where_the_router_listens(host: str) -> None:
    ports = choose(RouterConfig(host=host, grpc_port=0, http_port=0), ["a"])["a"]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (ports.grpc, ports.http):
        socket.create_server((host, port), family=family).close()
