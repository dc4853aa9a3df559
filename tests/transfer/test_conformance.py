"""What every transport guarantees, both sides in this process. A new one is one word in `worlds.KINDS`.

What needs a process to kill or to stop is in test_peer_death.py.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from baton.errors import Cancelled, IncompatiblePeer, Internal, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import Link, Revocation, TransferId, Write, Written
from kv_transfer.layout import PoolLayout, plan
from kv_transfer.pool import Pool
from tests.transfer.worlds import (
    BIG,
    KINDS,
    MAPPED_KINDS,
    SMALL,
    Decode,
    make_decode,
    make_sender,
    random_pool,
    send,
)

FIRST = TransferId("first", 0)
SECOND = TransferId("second", 0)

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def decode(kind: str) -> Iterator[Callable[[PoolLayout], Decode]]:
    """Makes decode ranks, and closes them in the end."""
    made: list[Decode] = []

    def make(layout: PoolLayout = SMALL) -> Decode:
        made.append(make_decode(kind, layout))
        return made[-1]

    yield make
    for each in made:
        each.receiver.close()
        each.receiver.close()  # twice does nothing


@pytest.fixture
def connect(kind: str) -> Iterator[Callable[[Pool, bytes], Link]]:
    """Makes links, and closes them in the end."""
    links: list[Link] = []

    def make(pool: Pool, offer: bytes) -> Link:
        links.append(make_sender(kind, pool).connect(offer))
        return links[-1]

    yield make
    for link in links:
        link.close()
        link.close()


DecodeFactory = Callable[..., Decode]
Connect = Callable[[Pool, bytes], Link]


@pytest.mark.parametrize("layout", [SMALL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("source", [[3, 4, 5, 6], [9, 2, 7, 3]], ids=["adjacent", "scattered"])
def test_bytes_land_in_the_named_blocks_and_nowhere_else(
    decode: DecodeFactory, connect: Connect, layout: PoolLayout, source: list[int]
) -> None:
    receiver = decode(layout)
    pool = random_pool(layout)
    link = connect(pool, receiver.receiver.offer())
    target = [8, 9, 10, 1]
    receiver.receiver.open(FIRST, target)
    link.open(FIRST, target)
    sums = send(link, FIRST, layout.num_layers, source, target)
    for layer in range(layout.num_layers):
        for from_block, to_block in zip(source, target, strict=True):
            assert torch.equal(receiver.pool.piece(layer, to_block), pool.piece(layer, from_block))
        for other in set(range(layout.num_blocks)) - set(target):
            assert not receiver.pool.piece(layer, other).any()
    assert sums == [receiver.pool.checksum(block) for block in target]
    assert sums == [pool.checksum(block) for block in source]


def test_all_layers_in_one_write(decode: DecodeFactory, connect: Connect) -> None:
    """More than a portion, so that it is cut."""
    receiver = decode(BIG)
    pool = random_pool(BIG)
    link = connect(pool, receiver.receiver.offer())
    source, target = list(range(BIG.num_blocks)), list(reversed(range(BIG.num_blocks)))
    receiver.receiver.open(FIRST, target)
    link.open(FIRST, target)
    whole = link.write(FIRST, Write(0, source, target, BIG.num_layers)).result(timeout=30)
    assert list(whole.checksums) == [receiver.pool.checksum(block) for block in target]
    assert list(whole.checksums) == [pool.checksum(block) for block in source]
    for from_block, to_block in zip(source, target, strict=True):
        assert torch.equal(receiver.pool.piece(2, to_block), pool.piece(2, from_block))
    some = link.write(FIRST, Write(1, [5], [5], 2)).result(timeout=30)
    assert torch.equal(receiver.pool.piece(1, 5), pool.piece(1, 5))
    assert not torch.equal(receiver.pool.piece(0, 5), pool.piece(0, 5))
    assert len(some.checksums) == 1
    assert whole.busy_s > 0


def test_one_changed_bit_is_seen(decode: DecodeFactory, connect: Connect) -> None:
    receiver = decode()
    link = connect(random_pool(SMALL), receiver.receiver.offer())
    receiver.receiver.open(FIRST, [5])
    link.open(FIRST, [5])
    (expected,) = send(link, FIRST, SMALL.num_layers, [2], [5])
    for layer in range(SMALL.num_layers):
        piece = receiver.pool.piece(layer, 5)
        for byte in (0, 17, SMALL.piece_bytes - 1):
            piece[byte] ^= 1
            assert receiver.pool.checksum(5) != expected
            piece[byte] ^= 1
    assert receiver.pool.checksum(5) == expected


def test_a_layer_that_did_not_come_is_seen(decode: DecodeFactory, connect: Connect) -> None:
    receiver = decode()
    pool = random_pool(SMALL)
    link = connect(pool, receiver.receiver.offer())
    receiver.receiver.open(FIRST, [5])
    link.open(FIRST, [5])
    send(link, FIRST, SMALL.num_layers - 1, [2], [5])
    assert receiver.pool.checksum(5) != pool.checksum(2)


def test_writes_of_a_link_happen_in_order(decode: DecodeFactory, connect: Connect) -> None:
    receiver = decode()
    pool = random_pool(SMALL)
    link = connect(pool, receiver.receiver.offer())
    receiver.receiver.open(FIRST, [0])
    link.open(FIRST, [0])
    done: list[int] = []

    def note(number: int, _: Future[Written]) -> None:
        done.append(number)

    futures = [link.write(FIRST, Write(0, [n % SMALL.num_blocks], [0])) for n in range(50)]
    for number, future in enumerate(futures):
        future.add_done_callback(partial(note, number))
    futures[-1].result(timeout=30)
    link.close()  # its thread has run the last callback
    assert done == list(range(50))
    assert torch.equal(receiver.pool.piece(0, 0), pool.piece(0, 49 % SMALL.num_blocks))


def test_nothing_is_written_after_a_fence(decode: DecodeFactory, connect: Connect) -> None:
    receiver = decode(BIG)
    link = connect(random_pool(BIG), receiver.receiver.offer())
    mine, other = list(range(32)), list(range(32, 64))
    for transfer, blocks in ((FIRST, mine), (SECOND, other)):
        receiver.receiver.open(transfer, blocks)
        link.open(transfer, blocks)
    futures = [link.write(FIRST, Write(layer % 4, mine, mine)) for layer in range(40)]
    kept = link.write(SECOND, Write(0, other, other))
    link.fence(FIRST)
    for layer in range(BIG.num_layers):
        for block in mine:
            receiver.pool.piece(layer, block).zero_()
    assert len(kept.result(timeout=30).checksums) == 32  # the other transfer went on
    late = link.write(FIRST, Write(0, mine, mine))
    with pytest.raises(Cancelled):
        late.result(timeout=30)
    assert isinstance(futures[-1].exception(timeout=30), Cancelled)
    assert not any(receiver.pool.piece(layer, block).any() for layer in range(4) for block in mine)
    link.fence(FIRST)  # again, and of one never opened: returns at once
    link.fence(TransferId("never", 7))


def test_a_transfer_writes_only_into_its_own_blocks(
    decode: DecodeFactory, connect: Connect
) -> None:
    receiver = decode()
    link = connect(random_pool(SMALL), receiver.receiver.offer())
    receiver.receiver.open(FIRST, [1, 2])
    link.open(FIRST, [1, 2])
    for wrong in (Write(0, [1, 1], [2, 3]), Write(0, [1, 2], [1])):
        with pytest.raises(Internal, match="destination_blocks"):
            link.write(FIRST, wrong).result(timeout=30)
    assert not receiver.pool.memory.any()
    link.write(FIRST, Write(0, [1], [2])).result(timeout=30)  # the link lives on


def test_what_is_revoked_by_proof_never_changes(
    kind: str, decode: DecodeFactory, connect: Connect
) -> None:
    receiver = decode()
    link = connect(random_pool(SMALL), receiver.receiver.offer())
    for transfer in (FIRST, SECOND):
        receiver.receiver.open(transfer, [1, 2])
        link.open(transfer, [1, 2])
    revocation = receiver.receiver.revoke(FIRST)
    assert revocation is (Revocation.NEEDS_FENCE if kind in MAPPED_KINDS else Revocation.PROVEN)
    if revocation is Revocation.PROVEN:
        with pytest.raises(Cancelled):
            link.write(FIRST, Write(0, [3, 4], [1, 2])).result(timeout=30)
        assert not receiver.pool.memory.any()
    link.write(SECOND, Write(0, [3, 4], [1, 2])).result(timeout=30)
    assert receiver.pool.memory.any()


def test_a_closed_link_is_replaced_by_a_new_one(decode: DecodeFactory, connect: Connect) -> None:
    receiver = decode()
    pool = random_pool(SMALL)
    for attempt in range(5):
        transfer = TransferId("again", attempt)
        link = connect(pool, receiver.receiver.offer())
        receiver.receiver.open(transfer, [attempt])
        link.open(transfer, [attempt])
        (expected,) = send(link, transfer, SMALL.num_layers, [attempt], [attempt])
        assert receiver.pool.checksum(attempt) == expected
        link.close()
        with pytest.raises(Cancelled):
            link.write(transfer, Write(0, [0], [attempt])).result(timeout=30)
        with pytest.raises(PeerLost):
            link.open(transfer, [attempt])


def test_many_pairs_at_once(decode: DecodeFactory, connect: Connect) -> None:
    receivers = [decode(), decode()]
    pools = [random_pool(SMALL, seed) for seed in range(8)]
    futures = []
    for number, pool in enumerate(pools):
        for receiver in receivers:
            transfer = TransferId(f"from {number}", 1)
            link = connect(pool, receiver.receiver.offer())
            receiver.receiver.open(transfer, [number, number + 8])
            link.open(transfer, [number, number + 8])
            futures += [
                link.write(transfer, Write(layer, [1, 2], [number, number + 8]))
                for layer in range(SMALL.num_layers)
            ]
    for future in futures:
        future.result(timeout=30)
    for receiver in receivers:
        for number, pool in enumerate(pools):
            assert receiver.pool.checksum(number) == pool.checksum(1)
            assert receiver.pool.checksum(number + 8) == pool.checksum(2)


@pytest.mark.parametrize(
    "model",
    [
        replace(SMALL, num_kv_heads=4),
        replace(SMALL, num_kv_heads=4, dtype="int8"),
        replace(SMALL, num_kv_heads=2, dtype="fp8"),  # fewer heads than ranks
        replace(SMALL, num_kv_heads=1, latent_dim=6),
    ],
    ids=["fp32", "int8", "fp8", "latent"],
)
def test_heads_are_gathered_and_scattered_across_tensor_parallel_ranks(
    decode: DecodeFactory, connect: Connect, model: PoolLayout
) -> None:
    whole = random_pool(model)
    halves = [split(whole, 2, rank) for rank in range(2)]
    quarters = [decode(replace(whole.layout, tp_size=4, tp_rank=rank)) for rank in range(4)]
    joined = decode(whole.layout)
    for receiver in (*quarters, joined):
        receiver.receiver.open(FIRST, [6, 7])
        parts = [0, 0]
        for half in halves:
            if not plan(half.layout, receiver.pool.layout):
                continue
            link = connect(half, receiver.receiver.offer())
            link.open(FIRST, [6, 7])
            sums = send(link, FIRST, SMALL.num_layers, [3, 4], [6, 7])
            parts = [(a + b) % (1 << 64) for a, b in zip(parts, sums, strict=True)]
        assert parts == [receiver.pool.checksum(block) for block in (6, 7)]
    assert joined.pool.checksum(6) == whole.checksum(3)
    for rank, receiver in enumerate(quarters):
        assert receiver.pool.checksum(7) == split(whole, 4, rank).checksum(4)


def split(whole: Pool, tp_size: int, tp_rank: int) -> Pool:
    """What this rank would hold of `whole`."""
    layout = replace(whole.layout, tp_size=tp_size, tp_rank=tp_rank)
    pieces = (layout.num_layers, layout.num_blocks, layout.num_parts)
    shape = (*pieces, layout.num_kv_heads, layout.head_bytes)
    heads = slice(layout.heads.start, layout.heads.stop)
    return Pool(layout, whole.memory.view(shape)[:, :, :, heads].reshape(-1))


def test_without_checksums_the_bytes_are_the_same(kind: str, decode: DecodeFactory) -> None:
    receiver = decode(BIG)
    pool = random_pool(BIG)
    link = make_sender(kind, pool, checksums=False).connect(receiver.receiver.offer())
    blocks = [4, 5, 6, 9]
    receiver.receiver.open(FIRST, blocks)
    link.open(FIRST, blocks)
    assert send(link, FIRST, BIG.num_layers, [1, 2, 3, 4], blocks) == [0] * 4
    link.close()
    assert receiver.pool.checksum(9) == pool.checksum(4)


def test_a_closed_receiver_takes_no_new_links(
    kind: str, decode: DecodeFactory, connect: Connect
) -> None:
    receiver = decode()
    link = connect(random_pool(SMALL), receiver.receiver.offer())
    offer = receiver.receiver.offer()
    link.open(FIRST, [1])
    receiver.receiver.close()
    with pytest.raises(PeerLost):
        connect(random_pool(SMALL), offer)
    if kind not in MAPPED_KINDS:  # a mapping outlives its name
        with pytest.raises(PeerLost):
            link.write(FIRST, Write(0, [1], [1])).result(timeout=30)
        with pytest.raises(PeerLost):  # and so is every later one
            link.write(FIRST, Write(0, [1], [1])).result(timeout=30)


@pytest.mark.parametrize("field", ["num_layers", "num_kv_heads", "block_size", "head_dim", "dtype"])
def test_a_pool_that_no_copying_fits_is_refused(
    decode: DecodeFactory, connect: Connect, field: str
) -> None:
    other: Any = "fp16" if field == "dtype" else getattr(SMALL, field) * 2
    receiver = decode(replace(SMALL, **{field: other}))
    with pytest.raises(IncompatiblePeer, match=field):
        connect(random_pool(SMALL), receiver.receiver.offer())


@pytest.mark.parametrize("offer", [b"", b"\xc1", b"\x01", wire_format.pack({"port": "x"})])
def test_what_is_no_offer_is_refused(connect: Connect, offer: bytes) -> None:
    with pytest.raises(IncompatiblePeer):
        connect(random_pool(SMALL), offer)
