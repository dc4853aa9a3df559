"""Peers that are killed or stopped in the middle of a write, over the transports between processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from baton.errors import PeerLost
from kv_transfer.base import Receiver, Revocation, Write
from kv_transfer.peer_process import PeerProcess, ProcessId
from tests.transfer.peer import BLOCKS, TRANSFER
from tests.transfer.worlds import (
    BETWEEN_PROCESSES,
    BIG,
    MAPPED_KINDS,
    TIMEOUT_S,
    Decode,
    make_decode,
    make_sender,
    random_pool,
    send,
)

ROOT = Path(__file__).parents[2]
REUSED = 7  # what the next owner of a block writes everywhere

pytestmark = pytest.mark.parametrize("kind", BETWEEN_PROCESSES)


class Peer:
    def __init__(self, role: str, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.transfer.peer", role, kind],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
        )

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def connect(self, offer: bytes) -> ProcessId:
        self.say(offer.hex())
        word, pid, start_ticks = self.hear()
        assert word == "connected"
        return ProcessId(int(pid), int(start_ticks))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(kind: str) -> Iterator[Callable[[str], Peer]]:
    peers: list[Peer] = []

    def make(role: str) -> Peer:
        peers.append(Peer(role, kind))
        return peers[-1]

    yield make
    for peer in peers:
        peer.end()


@pytest.fixture
def decode(kind: str) -> Iterator[Decode]:
    made = make_decode(kind, BIG)
    made.receiver.open(TRANSFER, BLOCKS)
    yield made
    made.receiver.close()


Start = Callable[[str], Peer]


def wait_for(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def is_proven(receiver: Receiver) -> bool:
    return receiver.revoke(TRANSFER) is Revocation.PROVEN


def stream_into(decode: Decode, writer: Peer) -> ProcessId:
    """Returns in the middle of a write."""
    process = writer.connect(decode.receiver.offer())
    writer.say("stream")
    wait_for(lambda: decode.pool.piece(BIG.num_layers - 1, BLOCKS[-1]).any())
    return process


def test_what_another_process_writes_is_what_it_has(
    kind: str, start: Start, decode: Decode
) -> None:
    decode.pool.memory.fill_(REUSED)
    writer = start("prefill")
    writer.connect(decode.receiver.offer())
    writer.say("write")
    sums = [int(word) for word in writer.hear()]
    source = random_pool(BIG)  # as the other process has made it
    for block in range(BIG.num_blocks):
        for layer in range(BIG.num_layers):
            arrived = decode.pool.piece(layer, block)
            if block in BLOCKS:
                assert torch.equal(arrived, source.piece(layer, block))
            else:
                assert (arrived == REUSED).all()
    assert sums == [decode.pool.checksum(block) for block in BLOCKS]


def test_a_killed_writer_writes_no_more(kind: str, start: Start, decode: Decode) -> None:
    writer = start("prefill")
    process = stream_into(decode, writer)
    watch = PeerProcess(process)
    assert not watch.is_dead
    writer.signal(signal.SIGKILL)
    assert watch.wait(10)
    watch.close()
    if kind not in MAPPED_KINDS:  # a dead process's bytes may still lie in the kernel's buffers
        wait_for(lambda: is_proven(decode.receiver))
    decode.pool.memory.fill_(REUSED)
    survivor = start("prefill")  # the receiver serves others as before
    survivor.connect(decode.receiver.offer())
    assert (decode.pool.memory == REUSED).all()
    with pytest.raises(PeerLost):
        PeerProcess(process)


def test_a_stopped_writer_that_wakes_up_late_harms_nobody(
    kind: str, start: Start, decode: Decode
) -> None:
    writer = start("prefill")
    stream_into(decode, writer)
    writer.signal(signal.SIGSTOP)
    decode.receiver.revoke(TRANSFER)
    if kind == "torch_dist":  # the posted receive ends with its timeout: proof without the writer
        wait_for(lambda: is_proven(decode.receiver))
        decode.pool.memory.fill_(REUSED)
        writer.signal(signal.SIGCONT)
        # In the middle of a write its link is lost, between two the transfer is refused.
        assert writer.hear() in (["ended", "PeerLost"], ["ended", "Cancelled"])
    elif (
        kind == "nixl"
    ):  # between two portions it holds no grant, in one only its word ends the wait
        if stopped_between := is_proven(decode.receiver):
            decode.pool.memory.fill_(REUSED)
        writer.signal(signal.SIGCONT)
        assert writer.hear() == ["ended", "Cancelled"]
        wait_for(lambda: is_proven(decode.receiver))
        if not stopped_between:
            decode.pool.memory.fill_(REUSED)
    else:  # a mapping cannot be taken back: blocks stay in quarantine until the writer's word
        time.sleep(0.1)
        assert not is_proven(decode.receiver)
        writer.signal(signal.SIGCONT)
        writer.say("fence")
        heard = [writer.hear(), writer.hear()]
        assert sorted(heard) == [["ended", "Cancelled"], ["fenced"]]
        decode.pool.memory.fill_(REUSED)
    time.sleep(0.2)
    assert (decode.pool.memory == REUSED).all()


def test_a_killed_reader_is_noticed_and_replaced(kind: str, start: Start) -> None:
    pool = random_pool(BIG)
    for _ in range(2):
        reader = start("decode")
        link = make_sender(kind, pool).connect(bytes.fromhex(reader.hear()[0]))
        link.open(TRANSFER, BLOCKS)
        assert len(send(link, TRANSFER, BIG.num_layers, BLOCKS, BLOCKS)) == len(BLOCKS)
        writes = [link.write(TRANSFER, Write(n % 4, BLOCKS, BLOCKS)) for n in range(8)]
        writes[1].result(timeout=30)
        reader.signal(signal.SIGKILL)
        reader.process.wait()
        last = link.write(TRANSFER, Write(0, BLOCKS, BLOCKS))
        # Bounded by the progress timeout; far from it where the death itself is seen.
        assert isinstance(last.exception(timeout=2 * TIMEOUT_S + 5), PeerLost)
        link.fence(TRANSFER)
        with pytest.raises(PeerLost):
            link.open(TRANSFER, BLOCKS)
        link.close()


def test_a_stopped_reader_is_given_up_where_it_is_needed(kind: str, start: Start) -> None:
    reader = start("decode")
    link = make_sender(kind, random_pool(BIG)).connect(bytes.fromhex(reader.hear()[0]))
    link.open(TRANSFER, BLOCKS)
    reader.signal(signal.SIGSTOP)
    lost = link.write(TRANSFER, Write(0, BLOCKS, BLOCKS)).exception(timeout=2 * TIMEOUT_S + 5)
    if kind in MAPPED_KINDS:  # which needs nothing from it
        assert lost is None
    else:
        assert isinstance(lost, PeerLost)
    link.close()


def test_one_dead_pair_leaves_the_others_alone(kind: str, start: Start, decode: Decode) -> None:
    dying, living = start("prefill"), start("prefill")
    stream_into(decode, dying)
    living.connect(decode.receiver.offer())
    living.say("stream")
    dying.signal(signal.SIGKILL)
    dying.process.wait()
    for _ in range(3):  # and it goes on and on
        piece = decode.pool.piece(0, BLOCKS[-1])
        piece.zero_()
        wait_for(piece.any)
    living.say("fence")
    assert ["fenced"] in (living.hear(), living.hear())
