"""Which transport carries a pair of ranks: the fastest one that both sides have and that works.

    D   Receivers.offer() ---> P   Senders.connect(offer) -> name, link
    D   Receivers[name] <-- name --'

A transport is forced by naming it alone, on either side. A new one is a file and an entry in the table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.errors import ConfigError, IncompatiblePeer, PeerLost
from kv_transfer import nixl_ends, wire_format
from kv_transfer.base import Link, Receiver, Sender
from kv_transfer.cuda_ipc import CudaIpcReceiver, CudaIpcSender
from kv_transfer.host import host_id
from kv_transfer.nixl import NixlReceiver, NixlSender
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory, ShmReceiver, ShmSender
from kv_transfer.torch_dist import TorchDistReceiver, TorchDistSender

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side brings. `shared` and the hosts are a receiver's, `checksums` is a sender's."""

    pool: Pool
    progress_timeout_s: float
    shared: SharedMemory | None = None
    host: str = ""
    told_host: str = ""
    checksums: bool = True


@dataclass(frozen=True, slots=True)
class _Transport:
    """`is_possible`: whether it moves that kind of pool at all, here."""

    is_possible: Callable[[_Side], bool]
    receiver: Callable[[_Side], Receiver]
    sender: Callable[[_Side], Sender]
    same_host: bool = False


_TABLE = {  # fastest first
    "cuda_ipc": _Transport(
        lambda side: side.pool.memory.is_cuda,
        lambda side: CudaIpcReceiver(side.pool),
        lambda side: CudaIpcSender(side.pool, checksums=side.checksums),
        same_host=True,
    ),
    "shm": _Transport(
        lambda side: not side.pool.memory.is_cuda,
        lambda side: ShmReceiver(side.pool.layout, side.shared),
        lambda side: ShmSender(side.pool, checksums=side.checksums),
        same_host=True,
    ),
    "nixl": _Transport(
        lambda side: nixl_ends.is_installed(),
        lambda side: NixlReceiver(side.pool, side.host, side.progress_timeout_s, side.told_host),
        lambda side: NixlSender(side.pool, side.progress_timeout_s, checksums=side.checksums),
    ),
    "torch_dist": _Transport(
        lambda side: True,
        lambda side: TorchDistReceiver(
            side.pool, side.host, side.progress_timeout_s, side.told_host
        ),
        lambda side: TorchDistSender(side.pool, side.progress_timeout_s, checksums=side.checksums),
    ),
}
TRANSPORTS = tuple(_TABLE)


class Receivers:
    """All the ways to reach one pool of D. `shared` is the memory that `pool` lies in, None where other
    processes cannot map it; `host` an address of this machine to listen on; `told_host`: the
    one by which writers reach it, where that is another.

    Of several `transports` those that fail here are left out; ConfigError where none is left."""

    def __init__(
        self,
        pool: Pool,
        shared: SharedMemory | None,
        host: str,
        progress_timeout_s: float,
        transports: Sequence[str] = TRANSPORTS,
        told_host: str = "",
    ) -> None:
        side = _Side(pool, progress_timeout_s, shared, host, told_host)
        self._receivers: dict[str, Receiver] = {}
        for name in (possible := _possible(transports, side)):
            try:
                self._receivers[name] = _TABLE[name].receiver(side)
            except ConfigError as error:
                if name == possible[-1] and not self._receivers:
                    raise
                log.warning("%s is left out: %s", name, error)

    def offer(self) -> bytes:
        """What P must know (msgpack)."""
        offers = {name: receiver.offer() for name, receiver in self._receivers.items()}
        return wire_format.pack({"host_id": host_id(), "offers": offers})

    def __getitem__(self, transport: str) -> Receiver:
        """The receiver of the transport that P has chosen."""
        if transport not in self._receivers:
            raise IncompatiblePeer(f"is {transport!r}, which was not offered", field="transport")
        return self._receivers[transport]

    def close(self) -> None:
        for receiver in self._receivers.values():
            receiver.close()


class Senders:
    """All the ways in which P can write from `pool`."""

    def __init__(
        self,
        pool: Pool,
        progress_timeout_s: float,
        transports: Sequence[str] = TRANSPORTS,
        *,
        checksums: bool = True,
    ) -> None:
        side = _Side(pool, progress_timeout_s, checksums=checksums)
        self._senders = {name: _TABLE[name].sender(side) for name in _possible(transports, side)}

    def connect(self, offer: bytes) -> tuple[str, Link]:
        """The first of `TRANSPORTS` that connects, and its link.

        IncompatiblePeer where the two sides have none in common or no plan exists, PeerLost where none
        answers.
        """
        fields = wire_format.unpack(offer, host_id=str, offers=dict)
        offers = fields["offers"]
        same_host = fields["host_id"] == host_id()
        common = [
            name
            for name in TRANSPORTS
            if name in self._senders and name in offers
            if same_host or not _TABLE[name].same_host
        ]
        if not common:
            where = "" if same_host else " from another host"
            raise IncompatiblePeer(
                f"{sorted(offers)} are offered{where}, {sorted(self._senders)} are known",
                field="transports",
            )
        *others, last = common
        for name in others:
            try:
                return name, self._senders[name].connect(offers[name])
            except PeerLost as error:
                log.warning("%s does not reach the peer, trying the next: %s", name, error)
        return last, self._senders[last].connect(offers[last])


def _possible(names: Sequence[str], side: _Side) -> list[str]:
    if not names or set(names) - set(TRANSPORTS):
        raise ConfigError(
            f"is {list(names)}, known are {', '.join(TRANSPORTS)}", field="transports"
        )
    possible = [name for name in TRANSPORTS if name in names and _TABLE[name].is_possible(side)]
    if not possible:
        raise ConfigError(
            f"{', '.join(names)}: not possible here with a pool on {side.pool.memory.device}",
            field="transports",
        )
    return possible
