"""What only NIXL's control socket can show: who holds a grant, and what its end proves."""

import os
import time
from collections.abc import Iterator

import pytest

from baton.errors import PeerLost
from kv_transfer import wire_format
from kv_transfer.base import Revocation, TransferId
from kv_transfer.framing import Connection
from kv_transfer.listener import greet
from tests.transfer.peer import TRANSFER
from tests.transfer.test_peer_death import Peer
from tests.transfer.worlds import SMALL, TIMEOUT_S, Decode, make_decode, needs_nixl

pytestmark = needs_nixl

ASK = {"landed": False, "request_id": "one", "attempt": 1, "blocks": [3]}
ONE = TransferId("one", 1)


@pytest.fixture
def decode() -> Iterator[Decode]:
    made = make_decode("nixl", SMALL)
    yield made
    made.receiver.close()


@pytest.fixture
def writer(decode: Decode) -> Iterator[Connection]:
    """A writer whose every word is said by the test."""
    offer = wire_format.unpack(decode.receiver.offer())
    connection = greet(offer, SMALL, TIMEOUT_S)
    connection.receive(10.0, agent=bytes)
    connection.send({"within_host": True}, TIMEOUT_S)
    yield connection
    connection.close()


def may_write(writer: Connection) -> bool:
    writer.send(ASK, TIMEOUT_S)
    return bool(writer.receive(TIMEOUT_S, granted=bool)["granted"])


def wait_for_proof(decode: Decode) -> None:
    give_up_s = time.monotonic() + 30
    while decode.receiver.revoke(ONE) is not Revocation.PROVEN:
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def test_a_grant_that_has_not_ended_is_no_proof(decode: Decode, writer: Connection) -> None:
    assert not may_write(writer)  # not open
    decode.receiver.open(ONE, [3])
    assert may_write(writer)
    assert decode.receiver.revoke(ONE) is Revocation.LANDING
    assert not may_write(writer)
    assert decode.receiver.revoke(ONE) is Revocation.LANDING
    writer.send(ASK | {"landed": True}, TIMEOUT_S)
    wait_for_proof(decode)


def test_a_grant_ends_with_its_writer(decode: Decode, writer: Connection) -> None:
    decode.receiver.open(ONE, [3])
    assert may_write(writer)
    assert decode.receiver.revoke(ONE) is Revocation.LANDING
    writer.close()
    wait_for_proof(decode)


def test_blocks_of_others_are_not_granted(decode: Decode, writer: Connection) -> None:
    decode.receiver.open(ONE, [4])
    with pytest.raises(PeerLost):
        may_write(writer)
    assert decode.receiver.revoke(ONE) is Revocation.PROVEN


def test_over_tcp_a_dead_peer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between hosts without RDMA, where UCX cannot copy by itself."""
    monkeypatch.setitem(os.environ, "UCX_TLS", "tcp,self")
    reader, writer = Peer("decode", "nixl"), Peer("prefill", "nixl")
    try:
        writer.connect(bytes.fromhex(reader.hear()[0]))
        writer.say("stream")
        time.sleep(0.2)  # in the middle of something
        reader.end()
        assert writer.hear() == ["ended", "PeerLost"]
        writer.say("fence")
        assert writer.hear() == ["fenced"], TRANSFER
    finally:
        reader.end()
        writer.end()
