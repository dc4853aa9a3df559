"""Which transport serves a pair of ranks: the first of `ORDER` that the decode side offers and the prefill
side can reach. Knows the transports by name, and nothing of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from baton.errors import BatonError, ConfigError, IncompatiblePeer
from kv_transfer import wire_format
from kv_transfer.base import Link, Receiver, Sender
from kv_transfer.host import host_id
from kv_transfer.peer_process import ProcessId, own_process_id
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory, ShmReceiver, ShmSender
from kv_transfer.torch_dist import TorchDistReceiver, TorchDistSender

log = logging.getLogger(__name__)

SHM, TORCH_DIST = "shm", "torch_dist"
ORDER = (SHM, TORCH_DIST)  # fastest first


class Receivers(Mapping[str, Receiver]):
    """A decode rank's receivers, by transport."""

    def __init__(
        self,
        pool: Pool,
        shared: SharedMemory | None,
        host: str,
        progress_timeout_s: float,
        transports: tuple[str, ...] = ORDER,
    ) -> None:
        unknown = set(transports) - set(ORDER)
        if unknown or not transports:
            raise ConfigError(f"must be some of {ORDER}, is {transports}", field="transports")
        self._receivers: dict[str, Receiver] = {}
        if SHM in transports and shared is not None:
            self._receivers[SHM] = ShmReceiver(pool.layout, shared)
        if TORCH_DIST in transports:
            self._receivers[TORCH_DIST] = TorchDistReceiver(pool, host, progress_timeout_s)

    def __getitem__(self, name: str) -> Receiver:
        return self._receivers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._receivers)

    def __len__(self) -> int:
        return len(self._receivers)

    def offer(self) -> bytes:
        """What a prefill rank needs to choose and connect."""
        offers = {name: receiver.offer() for name, receiver in self._receivers.items()}
        return wire_format.pack({"host_id": host_id(), "offers": offers})

    def close(self) -> None:
        for receiver in self._receivers.values():
            receiver.close()


class Senders:
    """A prefill rank's senders, by transport."""

    def __init__(self, pool: Pool, progress_timeout_s: float) -> None:
        self._senders: dict[str, Sender] = {
            SHM: ShmSender(pool),
            TORCH_DIST: TorchDistSender(pool, progress_timeout_s),
        }

    def connect(self, offer: bytes) -> tuple[str, Link]:
        """A link over the best transport of the offer that can be had, and its name. Raises the last
        one's error where none can."""
        fields = wire_format.unpack(offer, host_id=str, offers=dict)
        same_host = fields["host_id"] == host_id()
        failure: BatonError = IncompatiblePeer("offers no transport that is known here")
        for name in ORDER:
            if name not in fields["offers"] or (name == SHM and not same_host):
                continue
            try:
                return name, self._senders[name].connect(fields["offers"][name])
            except BatonError as error:
                log.warning("no link over %s: %s", name, error)
                failure = error
        raise failure


def pack_process() -> bytes:
    """Which process this is, so that a peer on the same machine can watch it."""
    own = own_process_id()
    return wire_format.pack({"host_id": host_id(), "pid": own.pid, "start_ticks": own.start_ticks})


def unpack_process(data: bytes) -> ProcessId | None:
    """The process that `pack_process` named; None where it runs on another machine."""
    fields = wire_format.unpack(data, host_id=str, pid=int, start_ticks=int)
    if fields["host_id"] != host_id():
        return None
    return ProcessId(fields["pid"], fields["start_ticks"])
