"""The seam of the hand-off: a prefill rank writes blocks of its pool into blocks of a decode rank's.

It is one-sided in meaning: P writes, and what D learns of it P tells it in words of its own (the stream
of baton.v1.Prefill). So a transport that needs no receiver (shared memory, CUDA IPC, RDMA) has none, and
one that does (torch.distributed) keeps it to itself.

    decode rank D                                          prefill rank P
    Receiver                                               Sender
      offer() --------------- msgpack, by gRPC ----------->  connect(offer) -> Link
      open(transfer, blocks)  - destination, by gRPC ------>   open(transfer, blocks)
                                                               write(transfer, Write)   any number of times
                  <============ bytes =====================      future: they lie in D's pool; checksums
      check what arrived <--- blocks, checksums, by gRPC ---
      revoke(transfer)        - cancel, by gRPC ----------->   fence(transfer)
      lift the quarantine <--- "fenced", by gRPC -----------

Who owns what, when:
- D's blocks belong to the transfer from `Receiver.open` until `revoke` answers PROVEN, or answers
  NEEDS_FENCE and P has said `Fenced`, or its process is known to be dead (`kv_transfer.peer_process`). Until
  one of these is true, any byte of them may still change, whatever was cancelled and however long ago. One
  exception: a block of which every write has completed, because no transport writes twice.
- P's blocks are read from `write` until its future is done. What they hold must not change meanwhile.

Order: the writes of one link happen one after another, in the order of the calls; links are independent.

Checksums are those of `kv_transfer.checksum`, of a whole destination block with the layers one behind the
other. Each write yields its part of them; the parts add up modulo 2^64, over layers and prefill ranks.

Every call may be made from any thread. Knows bytes and blocks; neither requests nor gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TransferId:
    """One attempt to hand one request over. No two transfers to a pool ever have the same."""

    request_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Write:
    """Layers [layer, layer + num_layers) of some blocks: of P's pool `source_blocks[i]` into
    `destination_blocks[i]` of D's."""

    layer: int
    source_blocks: Sequence[int]
    destination_blocks: Sequence[int]
    num_layers: int = 1

    @property
    def layers(self) -> range:
        return range(self.layer, self.layer + self.num_layers)


@dataclass(frozen=True, slots=True)
class Written:
    """A write whose bytes lie in D's pool: its part of the checksum of each destination block (zeros
    where checksums are off), and for how many seconds the link was busy with it."""

    checksums: Sequence[int]
    busy_s: float


class Revocation(Enum):
    """What `Receiver.revoke` has achieved."""

    PROVEN = "no byte of the transfer can land any more"
    LANDING = (
        "bytes may be on their way, whatever becomes of the writer: ask again until it is PROVEN"
    )
    NEEDS_FENCE = "the writer may still write: only its own word or its death ends that"

    def is_settled(self, *, writer_stopped: bool) -> bool:
        """Whether it is proved that no byte of the transfer can land any more. `writer_stopped`: by its own
        word, or its death."""
        return self is Revocation.PROVEN or (self is Revocation.NEEDS_FENCE and writer_stopped)


class Receiver(Protocol):
    """D's side of one pool, for any number of writers."""

    def offer(self) -> bytes:
        """What a sender must know to connect (msgpack). The same for every sender, valid until close."""
        ...

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        """From now on `transfer` may write into `blocks`. Called before its writer is asked to."""
        ...

    def revoke(self, transfer: TransferId) -> Revocation:
        """Ends that permission; called at the end of every transfer, also of a completed one (whose
        answer does not matter). Never waits. LANDING becomes PROVEN, at the latest some time after the
        writer's death: until then its word and its death prove nothing, since what it has sent may lie in
        buffers of this machine. NEEDS_FENCE stays."""
        ...

    def close(self) -> None:
        """No new connections; memory and sockets are given back. Calling it again does nothing."""
        ...


class Link(Protocol):
    """P's side of one pair of ranks."""

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        """Writes of `transfer` are accepted from now on, into `blocks` of D's pool and no others.
        Unavailable where the link is lost: close it and connect anew."""
        ...

    def write(self, transfer: TransferId, write: Write) -> Future[Written]:
        """Queues one write. The future is done when the bytes lie in D's pool.

        The future raises Cancelled where the transfer was fenced first (some of the bytes may have
        landed), PeerLost where the peer is gone or made no progress (so will all others of this link),
        Internal for a block that `open` did not name.
        """
        ...

    def fence(self, transfer: TransferId) -> None:
        """After it returns, this link never writes for `transfer` again: queued writes are cancelled, the
        one in progress is waited for (bounded by the transport's progress timeout). Also the way a
        completed transfer is forgotten. For a transfer that is not open it returns at once."""
        ...

    def close(self) -> None:
        """Fences every transfer and lets the peer go. Calling it again does nothing."""
        ...


class Sender(Protocol):
    """P's side of one pool."""

    def connect(self, offer: bytes) -> Link:
        """A new link to the pool that made `offer`. May take some milliseconds; links of the same pair
        are independent. PeerLost where nobody answers, IncompatiblePeer where no plan exists."""
        ...
