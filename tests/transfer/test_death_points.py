"""A peer that dies or is stopped at every class of byte offset of a transfer: what has landed is what was
written before, nothing lands later than the proof, and the next connection carries the whole.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from baton.errors import PeerLost
from kv_transfer.base import Revocation
from kv_transfer.peer_process import PeerProcess
from tests.transfer import forked
from tests.transfer.hooked import Moment
from tests.transfer.points import (
    BLOCKS,
    LAYOUT,
    POINTS,
    TRANSFER,
    At,
    Writers,
    num_landed,
)
from tests.transfer.worlds import BETWEEN_PROCESSES, TIMEOUT_S, Decode, random_pool

REUSED = 7  # what the next owner of a block writes everywhere

pytestmark = pytest.mark.parametrize("kind", BETWEEN_PROCESSES)
at_every_point = pytest.mark.parametrize("point", POINTS)


@pytest.fixture
def start() -> Iterator[Callable[[forked.Peer], forked.Peer]]:
    """Ends its peers in the end."""
    peers: list[forked.Peer] = []

    def keep(peer: forked.Peer) -> forked.Peer:
        peers.append(peer)
        return peer

    yield keep
    for peer in peers:
        peer.end()


Keep = Callable[[forked.Peer], forked.Peer]


@at_every_point
def test_of_a_killed_writer_what_it_had_written_has_landed_and_no_more(
    kind: str, point: str, start: Keep, decode: Decode
) -> None:
    dying = start(forked.writer(kind, decode.receiver.offer(), point, signal.SIGKILL))
    dying.wait()
    wait_for(lambda: is_proven(decode, dying))
    landed = num_landed(decode.pool, random_pool(LAYOUT))
    if POINTS[point].moment is Moment.UNDER_WAY:  # that portion may have come whole
        assert landed in (POINTS[point].num_landed, POINTS[point].num_landed + 1)
    else:
        assert landed == POINTS[point].num_landed
    decode.pool.memory.fill_(REUSED)
    others = [block for block in range(LAYOUT.num_blocks) if block not in BLOCKS]
    carries_the_whole(kind, decode)
    for layer in range(LAYOUT.num_layers):
        assert all((decode.pool.piece(layer, block) == REUSED).all() for block in others)


@pytest.mark.parametrize(
    "point",
    [
        "before the first byte",
        "the first bytes under way",
        "inside a later layer",
        "after the last byte, before anybody is told",
    ],
)
def test_a_writer_that_is_stopped_and_wakes_up_late_harms_nobody(
    kind: str, point: str, start: Keep, decode: Decode
) -> None:
    late = start(forked.writer(kind, decode.receiver.offer(), point, signal.SIGSTOP))
    wait_for(lambda: late.is_stopped)
    proven = is_proven_in_time(decode)
    assert proven or kind != "torch_dist"  # whose receives end, whatever the writer does
    if proven:
        decode.pool.memory.fill_(REUSED)
    late.signal(signal.SIGCONT)
    late.hear()
    late.say("fence")
    assert late.hear() == "fenced"
    if not proven:  # its own word was needed: until then nobody may have the blocks
        wait_for(lambda: decode.receiver.revoke(TRANSFER) is not Revocation.LANDING)
        decode.pool.memory.fill_(REUSED)
    assert (decode.pool.memory == REUSED).all()
    decode.receiver.open(TRANSFER, BLOCKS)
    carries_the_whole(kind, decode)


@at_every_point
def test_a_reader_that_is_killed_is_noticed_and_replaced(
    kind: str, point: str, start: Keep
) -> None:
    dying = start(forked.reader(kind))
    watch = PeerProcess(dying.id)

    def kill() -> None:
        dying.signal(signal.SIGKILL)
        assert watch.wait(10)

    writers = Writers(kind, dying.hear(), At(POINTS[point], kill))
    writers.open()
    with pytest.raises(PeerLost):
        write_twice(writers)
    writers.fence()
    with pytest.raises(PeerLost):
        writers.open()
    writers.close()
    watch.close()
    living = start(forked.reader(kind))
    writers = Writers(kind, living.hear())
    writers.open()
    sums = writers.write()
    living.say("checksums")
    assert living.hear() == sums
    writers.close()


def write_twice(writers: Writers) -> None:
    """Where only the answer to the last bytes was missing, it is the next write that finds nobody."""
    for _ in range(2):
        writers.write()


def carries_the_whole(kind: str, decode: Decode) -> None:
    """A new connection, and the payload again."""
    decode.receiver.open(TRANSFER, BLOCKS)
    writers = Writers(kind, decode.receiver.offer())
    try:
        writers.open()
        sums = writers.write()
        assert sums == [decode.pool.checksum(block) for block in BLOCKS]
        assert sums == [writers.pool.checksum(block) for block in BLOCKS]
        writers.fence()
    finally:
        writers.close()


def is_proven(decode: Decode, writer: forked.Peer) -> bool:
    """Nothing can land any more: the transport says so, or what it needs, the writer's death, is seen."""
    match decode.receiver.revoke(TRANSFER):
        case Revocation.PROVEN:
            return True
        case Revocation.LANDING:
            return False
        case Revocation.NEEDS_FENCE:
            return writer.is_dead


def is_proven_in_time(decode: Decode) -> bool:
    """Whether the transport proves by itself that nothing can land any more, its writer being stopped."""
    give_up_s = time.monotonic() + 2 * TIMEOUT_S
    while (found := decode.receiver.revoke(TRANSFER)) is Revocation.LANDING:
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.001)
    return found is Revocation.PROVEN


def wait_for(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)
