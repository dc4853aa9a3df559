"""What is no address of a Ray head is refused at once."""

from __future__ import annotations

import socket

import pytest

from baton.cluster.ray_address import check, check_reachable
from baton.errors import ConfigError


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "head.example:6379", "[::1]:6379"])
def test_what_it_may_be(address: str) -> None:
    check(address)


@pytest.mark.parametrize(
    "address",
    [
        "ray://127.0.0.1:10001",
        "http://127.0.0.1:8265",
        "https://ray.example",
        "local",
        "127.0.0.1",
        ":6379",
        "h:",
        "h:0",
        "h:70000",
        "h:²",
    ],
)
def test_what_it_may_not_be(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(address)
    assert refused.value.field == "ray_address"
    assert address in refused.value.message


@pytest.mark.parametrize("address", ["no..name:6379", "127.0.0.1:1"])
def test_where_nothing_is(address: str) -> None:
    with pytest.raises(ConfigError, match=address):
        check_reachable(address)


def test_where_something_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_reachable(f"127.0.0.1:{listener.getsockname()[1]}")
