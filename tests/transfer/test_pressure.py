"""Peers that are slow, and peers that take nothing: the slow are waited for, and of the others only their own
pair hears. Both sides count a timeout from the last byte, not from the first.
"""

from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.errors import Cancelled, PeerLost
from kv_transfer.base import TransferId, Write
from tests.transfer import forked
from tests.transfer.hooked import Moment, hook_into
from tests.transfer.points import BLOCKS, LAYOUT, TRANSFER
from tests.transfer.worlds import (
    BETWEEN_PROCESSES,
    KINDS,
    TIMEOUT_S,
    Decode,
    make_sender,
    random_pool,
    send,
)

NUM_QUEUED = 2000  # writes of both blocks: a gigabyte
MOST_GROWTH_BYTES = 64 << 20


@pytest.fixture
def reader(kind: str) -> Iterator[forked.Peer]:
    peer = forked.reader(kind)
    yield peer
    peer.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_writer_is_waited_for(kind: str, decode: Decode) -> None:
    """Every portion takes a good part of the timeout, all of them longer."""
    source = random_pool(LAYOUT)
    link = make_sender(kind, source).connect(decode.receiver.offer())

    def slowly(moment: Moment, transfer: TransferId) -> None:
        if moment is Moment.UNDER_WAY:
            time.sleep(0.4 * TIMEOUT_S)

    hook_into(link, slowly)
    link.open(TRANSFER, BLOCKS)
    sums = send(link, TRANSFER, LAYOUT.num_layers, BLOCKS, BLOCKS)
    assert sums == [decode.pool.checksum(block) for block in BLOCKS]
    assert sums == [source.checksum(block) for block in BLOCKS]
    link.close()


@pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
def test_a_slow_reader_is_waited_for(kind: str, reader: forked.Peer) -> None:
    """It stands still before every write for half of the timeout, in all for longer."""
    link = make_sender(kind, random_pool(LAYOUT)).connect(reader.hear())
    waking: list[threading.Timer] = []

    def stand_still(moment: Moment, transfer: TransferId) -> None:
        if moment is Moment.BEFORE:
            reader.signal(signal.SIGSTOP)
            waking.append(threading.Timer(0.5 * TIMEOUT_S, reader.signal, [signal.SIGCONT]))
            waking[-1].start()
        if moment is Moment.LANDED:  # a transport that needs no reader has not waited for it
            waking[-1].join()

    hook_into(link, stand_still)
    link.open(TRANSFER, BLOCKS)
    sums = send(link, TRANSFER, LAYOUT.num_layers, BLOCKS, BLOCKS)
    reader.say("checksums")
    assert reader.hear() == sums
    link.close()


@pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
def test_a_reader_that_takes_nothing_fills_no_memory_and_holds_up_no_other_pair(
    kind: str, reader: forked.Peer, decode: Decode
) -> None:
    source = random_pool(LAYOUT)
    sender = make_sender(kind, source)
    stuck, living = sender.connect(reader.hear()), sender.connect(decode.receiver.offer())
    for link in (stuck, living):
        link.open(TRANSFER, BLOCKS)
    reader.signal(signal.SIGSTOP)
    before = resident_bytes()
    futures = [stuck.write(TRANSFER, Write(0, BLOCKS, BLOCKS)) for _ in range(NUM_QUEUED)]
    sums = send(living, TRANSFER, LAYOUT.num_layers, BLOCKS, BLOCKS)
    assert sums == [decode.pool.checksum(block) for block in BLOCKS]
    assert resident_bytes() - before < MOST_GROWTH_BYTES
    stuck.fence(TRANSFER)  # bounded by the progress timeout
    errors = {type(future.exception(timeout=30)) for future in futures}
    assert errors <= {type(None), Cancelled, PeerLost}
    if kind != "shm":  # which needs nothing of its reader
        assert errors & {Cancelled, PeerLost}
    for link in (stuck, living):
        link.close()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
