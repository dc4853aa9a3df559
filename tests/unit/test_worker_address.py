"""What a worker is called, and by which address, where several of them are alike."""

from __future__ import annotations

import socket

import pytest

from baton.errors import ConfigError
from baton.types import Role
from baton.worker.address import told_host
from baton.worker.config import HostConfig
from baton.worker.host import _new_incarnation, _new_name

ROUTERS = ("127.0.0.1:50051",)


def test_names_and_incarnations_differ_where_host_name_pid_and_clock_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_000_000_000)
    names = {_new_name(Role.PREFILL) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith(f"prefill-{socket.gethostname()}-") for name in names)
    before = {_new_incarnation() for _ in range(20)}
    assert len(before) > 1
    monkeypatch.setattr("time.time_ns", lambda: 1_700_000_000_001_000_000)
    assert max(before) < _new_incarnation() < 2**53, "a later one is higher, and exact as a double"


@pytest.mark.parametrize(
    ("host", "given", "told"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("worker-7.baton", "", "worker-7.baton"),
        ("10.0.0.7", "worker.example", "worker.example"),
        ("0.0.0.0", "10.0.0.7", "10.0.0.7"),
        ("::", "[fd00::7]", "fd00::7"),
        ("0.0.0.0", "", "127.0.0.1"),
        ("::", "", "127.0.0.1"),
    ],
)
def test_others_are_told_an_address_that_they_can_call(host: str, given: str, told: str) -> None:
    assert told_host(HostConfig(host=host, advertise_address=given, routers=ROUTERS)) == told


def test_of_a_store_the_way_there_says_it() -> None:
    config = HostConfig(host="0.0.0.0", routers=(), state="redis://user:word@127.0.0.1:6379/0")
    assert told_host(config) == "127.0.0.1"


@pytest.mark.parametrize(("host", "given"), [("0.0.0.0", ""), ("127.0.0.1", "0.0.0.0")])
def test_every_address_is_none(host: str, given: str) -> None:
    with pytest.raises(ConfigError, match="that others can call"):
        told_host(HostConfig(host=host, advertise_address=given, routers=()))
