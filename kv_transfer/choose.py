"""Which transport carries a pair of ranks: the fastest one that both sides have and that works.

    D   Receivers.offer() ---> P   Senders.connect(offer) -> name, link
    D   Receivers[name] <-- name --'

A transport is forced by naming it alone, on either side.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from baton.errors import ConfigError, IncompatiblePeer, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import Link, Receiver, Sender
from kv_transfer.host import host_id
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory, ShmReceiver, ShmSender
from kv_transfer.torch_dist import TorchDistReceiver, TorchDistSender

log = logging.getLogger(__name__)

SHM = "shm"
TORCH_DIST = "torch_dist"
TRANSPORTS = (SHM, TORCH_DIST)  # fastest first
_SAME_HOST = frozenset({SHM})


class Receivers:
    """All the ways to reach one pool of D. `shared` is the memory that `pool` lies in, None where other
    processes cannot map it; `host` an address of this machine that writers can reach."""

    def __init__(
        self,
        pool: Pool,
        shared: SharedMemory | None,
        host: str,
        progress_timeout_s: float,
        transports: Sequence[str] = TRANSPORTS,
    ) -> None:
        _check_names(transports)
        self._receivers: dict[str, Receiver] = {}
        if SHM in transports and shared is not None:
            self._receivers[SHM] = ShmReceiver(pool.layout, shared)
        if TORCH_DIST in transports:
            self._receivers[TORCH_DIST] = TorchDistReceiver(pool, host, progress_timeout_s)

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
        _check_names(transports)
        self._senders: dict[str, Sender] = {}
        if SHM in transports and not pool.memory.is_cuda:
            self._senders[SHM] = ShmSender(pool, checksums=checksums)
        if TORCH_DIST in transports:
            self._senders[TORCH_DIST] = TorchDistSender(
                pool, progress_timeout_s, checksums=checksums
            )

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
            if name in self._senders and name in offers and (same_host or name not in _SAME_HOST)
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


def _check_names(transports: Sequence[str]) -> None:
    if not transports or set(transports) - set(TRANSPORTS):
        raise ConfigError(
            f"is {list(transports)}, known are {', '.join(TRANSPORTS)}", field="transports"
        )
