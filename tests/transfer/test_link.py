"""The fence, at moments that only a wire which waits to be let go can show."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from baton.errors import Cancelled, IntegrityError, Internal, PeerLost
from kv_transfer import link as link_module
from kv_transfer.base import TransferId, Write
from kv_transfer.link import PORTION_BYTES, Flow, OrderedLink

FIRST, SECOND = TransferId("first", 0), TransferId("second", 0)
ONE = Write(0, [0], [1])


class HeldWire:
    """Every portion waits for `release` to be finished; what is finished is in `done`."""

    flow = Flow(PORTION_BYTES // 2)

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.done: list[tuple[TransferId, list[int]]] = []
        self.error: Exception | None = None
        self.closed = False

    def begin(self, transfer: TransferId, write: Write) -> Callable[[], Sequence[int]]:
        self.started.release()

        def finish() -> Sequence[int]:
            assert self.release.acquire(timeout=30)
            if self.error is not None:
                raise self.error
            self.done.append((transfer, list(write.destination_blocks)))
            return [7] * len(write.source_blocks)

        return finish

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def wire() -> HeldWire:
    return HeldWire()


@pytest.fixture
def link(wire: HeldWire) -> Iterator[OrderedLink]:
    link = OrderedLink(wire, "test")
    for transfer in (FIRST, SECOND):
        link.open(transfer, range(16))
    yield link
    for _ in range(50):
        wire.release.release()
    link.close()
    assert wire.closed


def fence(link: OrderedLink, transfer: TransferId) -> tuple[threading.Thread, threading.Event]:
    returned = threading.Event()

    def run() -> None:
        link.fence(transfer)
        returned.set()

    thread = threading.Thread(target=run)
    thread.start()
    return thread, returned


def test_a_fence_waits_for_the_write_in_progress(wire: HeldWire, link: OrderedLink) -> None:
    running, queued = link.write(FIRST, ONE), link.write(FIRST, ONE)
    assert wire.started.acquire(timeout=30)
    thread, returned = fence(link, FIRST)
    assert not returned.wait(0.1)
    wire.release.release()
    thread.join(30)
    assert returned.is_set()
    assert running.result(timeout=30).checksums == [7]
    assert isinstance(queued.exception(timeout=30), Cancelled)
    assert wire.done == [(FIRST, [1])]


def test_a_fence_does_not_wait_for_others(wire: HeldWire, link: OrderedLink) -> None:
    running = link.write(FIRST, ONE)
    queued = link.write(SECOND, ONE)
    assert wire.started.acquire(timeout=30)
    link.fence(SECOND)
    assert isinstance(queued.exception(timeout=30), Cancelled)
    assert not running.done()


def test_a_long_write_is_cut_so_that_a_fence_need_not_wait_for_all(
    wire: HeldWire, link: OrderedLink
) -> None:
    running = link.write(FIRST, Write(0, range(5), range(5)))
    assert wire.started.acquire(timeout=30)
    thread, _ = fence(link, FIRST)
    while FIRST in link._open:  # until the fence is known; then the first portion ends
        pass
    wire.release.release()
    thread.join(30)
    assert isinstance(running.exception(timeout=30), Cancelled)
    assert wire.done == [(FIRST, [0, 1])]


def test_the_sums_of_a_cut_write_come_together(wire: HeldWire, link: OrderedLink) -> None:
    for _ in range(3):
        wire.release.release()
    assert link.write(FIRST, Write(0, range(5), range(5))).result(timeout=30).checksums == [7] * 5
    assert [blocks for _, blocks in wire.done] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("error", "kind"), [(PeerLost("gone"), PeerLost), (ValueError("a defect"), Internal)]
)
def test_after_an_error_nothing_is_trusted(
    wire: HeldWire, link: OrderedLink, error: Exception, kind: type[Exception]
) -> None:
    wire.error = error
    futures = [link.write(FIRST, ONE), link.write(SECOND, ONE)]
    wire.release.release()
    for future in futures:
        assert isinstance(future.exception(timeout=30), kind)
    assert isinstance(link.write(FIRST, ONE).exception(timeout=30), PeerLost)
    with pytest.raises(PeerLost, match=str(error)):
        link.open(TransferId("next", 0), [1])


def test_a_revoked_transfer_does_not_harm_the_link(wire: HeldWire, link: OrderedLink) -> None:
    wire.error = Cancelled("revoked")
    wire.release.release()
    assert isinstance(link.write(FIRST, ONE).exception(timeout=30), Cancelled)
    wire.error = None
    wire.release.release()
    assert link.write(SECOND, ONE).result(timeout=30).checksums == [7]


def test_close_ends_what_waits(wire: HeldWire) -> None:
    link = OrderedLink(wire, "closing")
    link.open(FIRST, [1])
    running, queued = link.write(FIRST, ONE), link.write(FIRST, ONE)
    assert wire.started.acquire(timeout=30)
    closing = threading.Thread(target=link.close)
    closing.start()
    assert isinstance(queued.exception(timeout=30), Cancelled)
    wire.release.release()
    closing.join(30)
    assert wire.closed
    assert running.result(timeout=30).checksums == [7]


class StuckWire(HeldWire):
    """Nobody knows whether it still writes."""

    def close(self) -> None:
        super().close()
        raise ValueError("it does not close")


def test_where_a_wire_does_not_close_everybody_is_told_and_no_fence_is_promised() -> None:
    wire = StuckWire()
    link = OrderedLink(wire, "stuck")
    for transfer in (FIRST, SECOND):
        link.open(transfer, [1])
    wire.error = PeerLost("gone")
    futures = [link.write(FIRST, ONE), link.write(SECOND, ONE)]
    assert wire.started.acquire(timeout=30)
    with ThreadPoolExecutor(1) as thread:
        fenced = thread.submit(link.fence, FIRST)
        wire.release.release()
        assert isinstance(fenced.exception(timeout=30), IntegrityError)
    for future in futures:
        assert isinstance(future.exception(timeout=30), IntegrityError)
    with pytest.raises(IntegrityError, match="may still be written"):
        link.fence(SECOND)
    with pytest.raises(IntegrityError, match="does not close"):
        link.close()


def test_a_close_that_is_not_certain_is_told() -> None:
    link = OrderedLink(StuckWire(), "stuck")
    with pytest.raises(IntegrityError, match="does not close"):
        link.close()


def test_a_link_whose_thread_cannot_begin_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_stream(device: object) -> None:
        raise RuntimeError("no stream")

    monkeypatch.setattr(link_module, "use_side_stream", no_stream)
    wire = HeldWire()
    link = OrderedLink(wire, "broken")
    link._thread.join(30)
    with pytest.raises(PeerLost, match="no stream"):
        link.open(FIRST, [1])
    assert isinstance(link.write(FIRST, ONE).exception(timeout=30), PeerLost)
    link.fence(FIRST)
    link.close()
    assert wire.closed
