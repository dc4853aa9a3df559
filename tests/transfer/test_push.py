"""A prefill worker's links to several readers, of which one does not move."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from baton.errors import BatonError, IntegrityError
from kv_transfer.base import TransferId, Write
from kv_transfer.link import Finish, Flow, OrderedLink
from prefill_worker.messages import BlockWrites, Event, Fence, FenceDone, Key, Open, WriteCached
from prefill_worker.push import Arrived, Pusher

WRITES = BlockWrites([0], [0], [1])
NUM_STALLED = 40  # transfers of one reader: more than any pool of threads has


class Wire:
    """A portion ends when `moves` is set; `begun` says that the first is under way."""

    flow = Flow(64)

    def __init__(self, *, closes: bool = True) -> None:
        self.begun = threading.Event()
        self.moves = threading.Event()
        self._closes = closes

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        self.begun.set()

        def finish() -> Sequence[int]:
            assert self.moves.wait(30)
            return [0]

        return finish

    def close(self) -> None:
        if not self._closes:
            raise ValueError("it does not close")


class World:
    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.failures: queue.Queue[BaseException] = queue.Queue()
        self.pusher = Pusher(1, self.events.put, announce, hang_up, self.failures.put)

    def add(self, reader: int, wire: Wire, num_transfers: int) -> list[Key]:
        self.pusher.add_reader(reader, OrderedLink(wire, f"reader-{reader}"))
        keys = [(reader, number) for number in range(num_transfers)]
        for key in keys:
            self.pusher.perform([Open(key, "r", [1]), WriteCached(key, WRITES)])
        return keys

    def fence(self, keys: Sequence[Key]) -> None:
        self.pusher.perform([Fence(key) for key in keys])

    def fenced(self, num_keys: int) -> set[Key]:
        """The next so many that are."""
        found: set[Key] = set()
        while len(found) < num_keys:
            if isinstance(event := self.events.get(timeout=30), FenceDone):
                found.add(event.key)
        return found


def announce(key: Key, arrived: Arrived) -> None:
    pass


def hang_up(reader: int, error: BatonError) -> None:
    pass


def test_a_stalled_reader_delays_no_fence_of_another() -> None:
    world, stalled, moving = World(), Wire(), Wire()
    of_stalled = world.add(1, stalled, NUM_STALLED)
    of_moving = world.add(2, moving, 3)
    moving.moves.set()
    assert stalled.begun.wait(30)
    world.fence([*of_stalled, *of_moving])
    assert world.fenced(3) == set(of_moving)
    stalled.moves.set()
    assert world.fenced(NUM_STALLED) == set(of_stalled)
    world.pusher.close()


def test_what_is_fenced_after_its_stream_has_ended_waits_for_the_link() -> None:
    world, wire = World(), Wire()
    keys = world.add(1, wire, 2)
    assert wire.begun.wait(30)
    closed = world.pusher.remove_reader(1)
    world.fence(keys)
    assert not closed.done()
    wire.moves.set()
    assert world.fenced(2) == set(keys)
    assert closed.done()
    world.pusher.close()


def test_where_a_link_can_promise_no_fence_the_worker_ends() -> None:
    world, wire = World(), Wire(closes=False)
    keys = world.add(1, wire, 1)
    wire.moves.set()
    closed = world.pusher.remove_reader(1)
    assert isinstance(closed.exception(timeout=30), IntegrityError)
    assert isinstance(world.failures.get(timeout=30), IntegrityError)
    world.fence(keys)
    assert not [event for event in list(world.events.queue) if isinstance(event, FenceDone)]
    world.pusher.close()
