"""Faults on purpose do what they say: exactly one byte, and never with a checksum that hides it."""

from __future__ import annotations

import pytest
import torch

from baton.errors import Cancelled, ConfigError
from kv_transfer.base import Link, TransferId, Write
from kv_transfer.faults import Faults
from kv_transfer.pool import Pool
from tests.transfer.worlds import KINDS, SMALL, TIMEOUT_S, make_decode, make_sender, random_pool

ONE = TransferId("one", 0)
SURELY = Faults(flip_in_flight=1.0, flip_after_write=1.0)


class Named:
    """As `kv_transfer.choose.Senders`, of one transport."""

    def __init__(self, kind: str, pool: Pool) -> None:
        self._sender = make_sender(kind, pool)

    def connect(self, offer: bytes) -> tuple[str, Link]:
        return "one", self._sender.connect(offer)


@pytest.mark.parametrize("kind", KINDS)
def test_one_byte_of_every_block_arrives_wrong_under_the_checksum_of_what_was_sent(
    kind: str,
) -> None:
    source, decode = random_pool(SMALL), make_decode(kind, SMALL)
    _, link = SURELY.senders(source, lambda pool: Named(kind, pool)).connect(
        decode.receiver.offer()
    )
    decode.receiver.open(ONE, [4, 5])
    link.open(ONE, [4, 5])
    sums = [0, 0]
    for layer in range(SMALL.num_layers):
        part = link.write(ONE, Write(layer, [1, 2], [4, 5])).result(TIMEOUT_S).checksums
        sums = [(total + each) % 2**64 for total, each in zip(sums, part, strict=True)]
        for from_block, to_block in ((1, 4), (2, 5)):
            wrong = decode.pool.piece(layer, to_block) != source.piece(layer, from_block)
            assert int(wrong.sum()) == 1
    assert sums == [source.checksum(1), source.checksum(2)]
    assert sums != [decode.pool.checksum(4), decode.pool.checksum(5)]
    link.fence(ONE)
    with pytest.raises(Cancelled):
        link.write(ONE, Write(0, [1], [4])).result(TIMEOUT_S)
    link.close()
    decode.receiver.close()


def test_one_byte_of_every_block_changes_after_it_has_arrived() -> None:
    pool = random_pool(SMALL)
    before = pool.memory.clone()
    flip = SURELY.arrived(pool)
    assert flip is not None
    flip(3)
    (wrong,) = torch.nonzero(pool.memory != before)[0].tolist()
    pieces = [SMALL.offset(layer, 3) for layer in range(SMALL.num_layers)]
    assert any(begin <= wrong < begin + SMALL.piece_bytes for begin in pieces)
    assert int((pool.memory != before).sum()) == 1


def test_without_faults_nothing_is_in_the_way() -> None:
    pool = random_pool(SMALL)
    senders = Named("loopback", pool)
    assert Faults.from_environment({}) == Faults()
    assert Faults().arrived(pool) is None
    assert Faults().senders(pool, lambda _: senders) is senders


def test_they_are_read_from_the_environment() -> None:
    given = {"BATON_FAULTS": "flip_in_flight:0.25,seed:7"}
    assert Faults.from_environment(given) == Faults(flip_in_flight=0.25, seed=7)


@pytest.mark.parametrize(
    "given", ["flip_everything:1", "flip_in_flight", "seed:x", "flip_in_flight:2"]
)
def test_what_is_no_fault_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="BATON_FAULTS"):
        Faults.from_environment({"BATON_FAULTS": given})
