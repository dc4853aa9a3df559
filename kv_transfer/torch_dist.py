"""torch.distributed point-to-point: Gloo for pools in host memory, NCCL for pools on GPUs.

Each pair of ranks has a connection of its own, with a process group of its own over it:

    P (rank 1 of 2)                              D (rank 0 of 2)
    control socket ------ hello ------------->   one thread per connection
                   <----- rendezvous -------->   of a group that no other pair and no later one shares
                   ------ what comes -------->
    group.send ...                               group.recv straight into the pool's blocks,
                   ------ what comes next --->   into scratch memory where the transfer is revoked
    group.send ...                               group.recv
                   <----- whether it landed --

Several portions are under way, so that D has posted the next receive before the last one is complete.

Small words go over the control socket rather than through the group: it can be waited for without a
posted receive, its end is the peer's death, and NCCL could not carry them from host memory. Both sides
derive the same ranges from the same plan, so that no offset crosses the wire.

Of the group, any error and any timeout is its end: the connection is closed with it, and the next `connect`
builds a new one. Gloo closes its socket when a wait times out, so that nothing lands afterwards; until then
a posted receive may, and `revoke` says LANDING.

The path of NCCL needs two GPUs and has not been run by us.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Work

from baton.errors import Cancelled, IncompatiblePeer
from kv_transfer import wire_format
from kv_transfer.base import TransferId, Write
from kv_transfer.framing import Connection
from kv_transfer.layout import PoolLayout, Slice, plan
from kv_transfer.link import Finish, Flow, OrderedLink
from kv_transfer.listener import OFFER, ListeningReceiver, greet
from kv_transfer.pool import Pool, source_checksums, write_slices
from kv_transfer.streams import use_side_stream
from kv_transfer.torch_group import PairGroup, join

_DECODE, _PREFILL = 0, 1  # ranks of a group
_DEPTH = 3  # portions under way: one arrives, one is posted, one is announced
_PORTION_BYTES = 32 << 20
_HEADER = {
    "request_id": str,
    "attempt": int,
    "layer": int,
    "num_layers": int,
    "source_blocks": list,
    "destination_blocks": list,
}


class TorchDistReceiver(ListeningReceiver):
    """Listens on `host`: see `Listener`."""

    def __init__(
        self, pool: Pool, host: str, progress_timeout_s: float, told_host: str = ""
    ) -> None:
        self._timeout_s = progress_timeout_s
        super().__init__(pool, host, progress_timeout_s, self._receive_all, told_host)

    # On the thread of one writer

    def _receive_all(self, connection: Connection, source: PoolLayout) -> None:
        device = self._pool.memory.device
        use_side_stream(device)
        slices = plan(source, self._pool.layout)
        group = join(connection, _DECODE, device, self._timeout_s)
        writer = _Writer(self._pool, slices, source, group)
        posted: deque[_Posted] = deque()
        try:
            while True:
                while not posted or (len(posted) < _DEPTH and connection.has_more()):
                    posted.append(self._post(writer, connection.receive(None, **_HEADER)))
                group.wait(posted[0].works, self._timeout_s)
                landed = self._end(posted.popleft())
                connection.send({"landed": landed}, self._timeout_s)
        finally:
            group.close([work for each in posted for work in each.works])
            for each in posted:
                self._end(each)

    def _post(self, writer: _Writer, header: dict[str, Any]) -> _Posted:
        """Posts the receives of one portion: into scratch memory where its transfer is not open."""
        transfer = TransferId(header["request_id"], header["attempt"])
        write = Write(
            header["layer"],
            header["source_blocks"],
            header["destination_blocks"],
            header["num_layers"],
        )
        if not 0 <= write.layer < write.layers.stop <= self._pool.layout.num_layers:
            raise IncompatiblePeer(f"is {write.layers}", field="layer")
        landing = self._permissions.admit(transfer, write.destination_blocks)
        posted = _Posted(transfer, landing)
        try:
            posted.works = writer.receive(write, landing=landing)
        except BaseException:
            self._end(posted)
            raise
        return posted

    def _end(self, posted: _Posted) -> bool:
        """Its receives are over. Whether they landed in the pool."""
        if posted.landing:
            self._permissions.end(posted.transfer)
        return posted.landing


@dataclass(slots=True, eq=False)
class _Posted:
    """The receives of one portion."""

    transfer: TransferId
    landing: bool
    works: list[Work] = field(default_factory=list)


class _Writer:
    """A connected prefill rank, on its thread of the receiver."""

    def __init__(
        self, pool: Pool, slices: Sequence[Slice], layout: PoolLayout, group: PairGroup
    ) -> None:
        self._pool = pool
        self._slices = slices
        self._layout = layout
        self._group = group
        self._scratch: Tensor | None = None

    def receive(self, write: Write, *, landing: bool) -> list[Work]:
        pool = self._pool
        targets: list[Tensor] = []
        for part in write_slices(self._layout, pool.layout, self._slices, write):
            if landing:
                targets.append(pool.memory[part.destination : part.destination + part.size_bytes])
            else:
                targets.append(self._scratch_of(part.size_bytes, pool.memory.device))
        return [self._group.receive(target) for target in targets]

    def _scratch_of(self, size_bytes: int, device: torch.device) -> Tensor:
        """What lands here is dropped, so one piece of memory serves all."""
        if self._scratch is None or self._scratch.numel() < size_bytes:
            self._scratch = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        return self._scratch[:size_bytes]


class TorchDistSender:
    """Writes from `pool` into pools that it is connected to."""

    def __init__(self, pool: Pool, progress_timeout_s: float, *, checksums: bool = True) -> None:
        self.pool = pool
        self.timeout_s = progress_timeout_s
        self.checksums = checksums

    def connect(self, offer: bytes) -> OrderedLink:
        fields = wire_format.unpack(offer, **OFFER, layout=dict)
        destination = wire_format.unpack_layout(fields["layout"])
        slices = plan(self.pool.layout, destination)
        device = self.pool.memory.device
        connection = greet(fields, self.pool.layout, self.timeout_s)
        try:
            group = join(connection, _PREFILL, device, self.timeout_s)
        except BaseException:
            connection.close()
            raise
        wire = _GroupWire(self, destination, slices, connection, group)
        return OrderedLink(wire, f"{fields['host']}:{fields['port']}", device)


class _GroupWire:
    """A connected decode rank, on its link's thread."""

    def __init__(
        self,
        sender: TorchDistSender,
        destination: PoolLayout,
        slices: Sequence[Slice],
        connection: Connection,
        group: PairGroup,
    ) -> None:
        self.flow = Flow(destination.piece_bytes, _PORTION_BYTES, _DEPTH)
        self._sender = sender
        self._destination = destination
        self._slices = slices
        self._connection = connection
        self._group = group
        self._under_way: deque[list[Work]] = deque()

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        pool, timeout_s = self._sender.pool, self._sender.timeout_s
        header = {
            "request_id": transfer.request_id,
            "attempt": transfer.attempt,
            "layer": write.layer,
            "num_layers": write.num_layers,
            "source_blocks": list(write.source_blocks),
            "destination_blocks": list(write.destination_blocks),
        }
        self._connection.send(header, timeout_s)
        ranges = write_slices(pool.layout, self._destination, self._slices, write)
        sources = [pool.memory[part.source : part.source + part.size_bytes] for part in ranges]
        works = [self._group.send(source) for source in sources]
        self._under_way.append(works)
        # While the bytes are on their way.
        sums = source_checksums(
            pool, self._destination, self._slices, write, checksums=self._sender.checksums
        )

        def finish() -> list[int]:
            self._group.wait(works, timeout_s)
            self._under_way.popleft()
            if not self._connection.receive(timeout_s, landed=bool)["landed"]:
                raise Cancelled("the receiver has revoked the transfer")
            return sums

        return finish

    def close(self) -> None:
        self._group.close([work for works in self._under_way for work in works])
        self._connection.close()
