"""NIXL: one-sided writes into the decode rank's pool by UCX, over RDMA where there is any; within one host
the kernel copies (process_vm_writev), and TCP is the floor. UCX chooses; UCX_TLS and UCX_NET_DEVICES tell it.

Each pair has a control socket, and at both ends a NIXL agent of its own with the pool registered:

    P                                       D
    control socket ---- hello ----------->  one thread per connection; makes its end of the pair
                   <--- that end ---------
                   ---- connected ------->
                   ---- may I? ---------->  admits a portion, or refuses: the transfer is revoked
                   <--- granted ----------
    write =================================> (no thread of Python, but over TCP)
                   ---- it has landed -->   the portion has ended

The next portion is asked for while this one is written, so that no write waits for an answer. D's thread lets
UCX work while a connection is made and while portions are granted, and else sleeps.

What is proof. UCX cannot promise D that nothing lands: a deregistered memory is closed to RDMA, but neither
to a copy by the kernel nor to TCP, where D's own UCX writes what it finds in the socket. So D
keeps account instead: P writes nothing that was not granted, and says when all of it lies there (UCX tells
it only once D's side has it). A portion ends by that word, or with the connection. P closes the socket only
after its end of the pair is destroyed, and the kernel closes it when its last thread is gone: the socket's
end says that P writes no more. Then D destroys its own end, and nothing on its way can land either. A
stopped writer that holds a grant keeps its blocks in quarantine until it wakes or dies.

A pair's registration is its own: with RDMA every pair pins both pools for itself, which nobody has measured.
RDMA and GPU memory have not been run by us.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from baton.errors import Cancelled, ConfigError, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import TransferId, Write
from kv_transfer.framing import Connection
from kv_transfer.host import host_id
from kv_transfer.layout import PoolLayout, Slice, plan
from kv_transfer.link import Finish, Flow, OrderedLink
from kv_transfer.listener import OFFER, ListeningReceiver, greet
from kv_transfer.nixl_ends import DESCRIPTION, PassiveEnd, WritingEnd
from kv_transfer.pool import Pool, source_checksums, write_slices
from kv_transfer.streams import synchronize

_PORTION_BYTES = 32 << 20
_DEPTH = 2  # one is written, one is asked for
_POLL_S = 20e-6
_POLL_WITHIN_HOST_MS = 1  # there the kernel copies: D has only connections to make
_LANES_WITHIN_HOST = 2  # there the lanes' threads copy; a NIC needs no more than one
_HELLO_TIMEOUT_S = 10.0  # a process's first end takes half a second of work


class NixlReceiver(ListeningReceiver):
    """Listens on `host`: see `Listener`. ConfigError where NIXL is not
    installed, or does not work with this pool."""

    def __init__(
        self, pool: Pool, host: str, progress_timeout_s: float, told_host: str = ""
    ) -> None:
        try:
            PassiveEnd(pool.memory).close()
        except PeerLost as error:
            raise ConfigError(f"nixl does not work here: {error}", field="transports") from error
        self._timeout_s = progress_timeout_s
        super().__init__(pool, host, progress_timeout_s, self._serve, told_host)

    def offer(self, **more: Any) -> bytes:
        return super().offer(host_id=host_id(), **more)

    def _serve(self, connection: Connection, source: PoolLayout) -> None:
        """On the thread of one writer, until it is gone."""
        plan(source, self._pool.layout)
        end = PassiveEnd(self._pool.memory)
        granted: deque[TransferId] = deque()
        try:
            connection.send(end.describe(), self._timeout_s)
            _progress(end, connection)
            word = connection.receive(None, within_host=bool)
            wait_ms = _POLL_WITHIN_HOST_MS if word["within_host"] else 0
            while True:
                if granted:
                    _progress(end, connection, wait_ms)
                word = connection.receive(
                    None, landed=bool, request_id=str, attempt=int, blocks=list
                )
                if word["landed"]:
                    self._permissions.end(granted.popleft())
                    continue
                transfer = TransferId(word["request_id"], word["attempt"])
                if admitted := self._permissions.admit(transfer, word["blocks"]):
                    granted.append(transfer)
                connection.send({"granted": admitted}, self._timeout_s)
        finally:
            end.close()
            for transfer in granted:
                self._permissions.end(transfer)


def _progress(end: PassiveEnd, connection: Connection, wait_ms: int = 0) -> None:
    """Until the other end says something, or is gone."""
    while not connection.has_more(wait_ms):
        end.progress()
        if not wait_ms:
            time.sleep(_POLL_S)


class NixlSender:
    """Writes from `pool` into pools that it is connected to."""

    def __init__(self, pool: Pool, progress_timeout_s: float, *, checksums: bool = True) -> None:
        self.pool = pool
        self.timeout_s = progress_timeout_s
        self.checksums = checksums

    def connect(self, offer: bytes) -> OrderedLink:
        fields = wire_format.unpack(offer, **OFFER, layout=dict, host_id=str)
        within_host = fields["host_id"] == host_id()
        num_lanes = _LANES_WITHIN_HOST if within_host else 1
        destination = wire_format.unpack_layout(fields["layout"])
        slices = plan(self.pool.layout, destination)
        connection = greet(fields, self.pool.layout, self.timeout_s)
        with ExitStack() as undo:
            undo.callback(connection.close)
            described = connection.receive(_HELLO_TIMEOUT_S, **DESCRIPTION)
            lanes = []
            for _ in range(num_lanes):
                lanes.append(_Lane(self.pool, described))
                undo.callback(lanes[-1].close)
            connection.send({"within_host": within_host}, self.timeout_s)
            undo.pop_all()
        wire = _NixlWire(self, destination, slices, connection, lanes)
        return OrderedLink(wire, f"nixl-{fields['host']}:{fields['port']}", self.pool.memory.device)


class _NixlWire:
    """A connected decode rank, on its link's thread, which itself moves bytes along the first lane."""

    def __init__(
        self,
        sender: NixlSender,
        destination: PoolLayout,
        slices: Sequence[Slice],
        connection: Connection,
        lanes: Sequence[_Lane],
    ) -> None:
        self.flow = Flow(destination.piece_bytes, _PORTION_BYTES, _DEPTH)
        self._sender = sender
        self._destination = destination
        self._slices = slices
        self._connection = connection
        self._lanes = lanes
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="nixl-lane") for _ in lanes[1:]]

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        pool, timeout_s = self._sender.pool, self._sender.timeout_s
        named = {"request_id": transfer.request_id, "attempt": transfer.attempt}
        blocks = list(write.destination_blocks)
        self._connection.send({"landed": False, **named, "blocks": blocks}, timeout_s)
        # While the answer is on its way.
        ranges = write_slices(pool.layout, self._destination, self._slices, write)
        shares = list(_shares(ranges, len(self._lanes)))

        def finish() -> list[int]:
            if not self._connection.receive(timeout_s, granted=bool)["granted"]:
                raise Cancelled("the receiver has revoked the transfer")
            synchronize(pool.memory.device)  # the NIC follows no stream
            moves = self._start(shares[1:])
            try:
                if shares:
                    self._lanes[0].move(shares[0], self._connection, timeout_s)
                sums = source_checksums(
                    pool, self._destination, self._slices, write, checksums=self._sender.checksums
                )
            finally:
                wait(moves)
            for move in moves:
                move.result()
            self._connection.send({"landed": True, **named, "blocks": blocks}, timeout_s)
            return sums

        return finish

    def _start(self, shares: Sequence[Sequence[Slice]]) -> list[Future[None]]:
        """Moves a share along each of the other lanes."""
        connection, timeout_s = self._connection, self._sender.timeout_s
        others = zip(self._threads, self._lanes[1:], shares, strict=False)
        return [
            thread.submit(lane.move, share, connection, timeout_s) for thread, lane, share in others
        ]

    def close(self) -> None:
        """In this order: the connection's end tells D that nothing is written any more. So it stays where
        a lane could not be closed, until this process ends."""
        for thread in self._threads:
            thread.shutdown()
        with ExitStack() as lanes:
            for lane in self._lanes:
                lanes.callback(lane.close)
        self._connection.close()


class _Lane:
    """A way to the other end, for one thread."""

    def __init__(self, pool: Pool, described: dict[str, Any]) -> None:
        self._end = WritingEnd(pool.memory, described)

    def close(self) -> None:
        self._end.close()

    def move(self, ranges: Sequence[Slice], connection: Connection, timeout_s: float) -> None:
        """Returns when all of them lie at the other end; PeerLost where they will not."""
        handle = self._end.write(ranges)
        give_up_s = time.monotonic() + timeout_s
        while not self._end.is_done(handle):
            if connection.has_ended():
                raise PeerLost("the other end closed the connection")
            if time.monotonic() > give_up_s:
                raise PeerLost(f"a portion did not arrive within {timeout_s} s")
            time.sleep(_POLL_S)


def _shares(ranges: Sequence[Slice], most: int) -> Iterator[Sequence[Slice]]:
    """At most `most` parts of about as many bytes, none empty."""
    target = -(-sum(part.size_bytes for part in ranges) // most)
    share: list[Slice] = []
    room = target
    for part in ranges:
        source, destination, left = part.source, part.destination, part.size_bytes
        while left:
            size = min(left, room)
            share.append(Slice(source, destination, size))
            source, destination = source + size, destination + size
            left, room = left - size, room - size
            if not room:
                yield share
                share, room = [], target
    if share:
        yield share
