"""Shared memory: the decode rank's pool lies in memory that the prefill rank maps and writes into.

The memory is anonymous (memfd): no file in /dev/shm to leave behind, whichever way the processes end, and
no limit of /dev/shm to run into. A prefill rank opens it through /proc/<pid>/fd, which the kernel allows to
processes of the same user that see each other by pid; the memory's name holds a random token, so that a
descriptor or pid given away again is not mistaken for it.

Nobody can take a mapping back: `revoke` is proven only by the writer's word or its death.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from baton.errors import ConfigError, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import Revocation, TransferId, Write
from kv_transfer.host import available_memory_bytes
from kv_transfer.layout import PoolLayout, Slice, plan
from kv_transfer.link import Finish, Flow, OrderedLink
from kv_transfer.peer_process import PeerProcess, ProcessId, own_process_id
from kv_transfer.pool import Pool, copy_blocks


class SharedMemory:
    """`size_bytes` of zeros that other processes can map. Takes all of the memory now, or ConfigError
    says what is needed and what there is: a page that is missing later would be a SIGBUS."""

    def __init__(self, size_bytes: int) -> None:
        if size_bytes > (available := available_memory_bytes()):
            raise ConfigError(
                f"takes {size_bytes} bytes of shared memory, {available} are available",
                field="kv_cache_bytes",
            )
        self.name = f"baton-{secrets.token_hex(16)}"
        self.fd = os.memfd_create(self.name)
        try:
            os.posix_fallocate(self.fd, 0, size_bytes)
            self.memory = _map(self.fd, size_bytes)
        except OSError as error:
            os.close(self.fd)
            raise ConfigError(
                f"cannot take {size_bytes} bytes of shared memory: {error}", field="kv_cache_bytes"
            ) from error

    def close(self) -> None:
        """No process can map it any more. The memory goes with its last mapping (`memory`'s too)."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class ShmReceiver:
    """Offers `shared`, in which a pool of `layout` lies; ConfigError where it lies in no shared memory."""

    def __init__(self, layout: PoolLayout, shared: SharedMemory | None) -> None:
        if shared is None:
            raise ConfigError("shm needs a pool in shared memory", field="transports")
        if shared.memory.numel() != layout.size_bytes:
            raise ConfigError(
                f"is {shared.memory.numel()} bytes for a pool of {layout.size_bytes}",
                field="shared_memory",
            )
        self._layout = layout
        self._shared = shared

    def offer(self) -> bytes:
        process = own_process_id()
        return wire_format.pack(
            {
                "pid": process.pid,
                "start_ticks": process.start_ticks,
                "fd": self._shared.fd,
                "name": self._shared.name,
                "layout": wire_format.pack_layout(self._layout),
            }
        )

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        """Nothing to do: whoever has mapped the pool can write into it."""

    def revoke(self, transfer: TransferId) -> Revocation:
        return Revocation.NEEDS_FENCE

    def close(self) -> None:
        self._shared.close()


class ShmSender:
    """Writes from `pool` into pools that it maps."""

    def __init__(self, pool: Pool, *, checksums: bool = True) -> None:
        self._pool = pool
        self._checksums = checksums

    def connect(self, offer: bytes) -> OrderedLink:
        fields = wire_format.unpack(offer, pid=int, start_ticks=int, fd=int, name=str, layout=dict)
        layout = wire_format.unpack_layout(fields["layout"])
        slices = plan(self._pool.layout, layout)
        process = ProcessId(fields["pid"], fields["start_ticks"])
        peer = PeerProcess(process)
        try:
            memory = _map_of(process, fields["fd"], fields["name"], layout.size_bytes)
        except BaseException:
            peer.close()
            raise
        wire = _ShmWire(self._pool, Pool(layout, memory), slices, peer, self._checksums)
        return OrderedLink(wire, f"shm-{process.pid}")


class _ShmWire:
    def __init__(
        self,
        source: Pool,
        destination: Pool,
        slices: Sequence[Slice],
        peer: PeerProcess,
        checksums: bool,
    ) -> None:
        self.flow = Flow(destination.layout.piece_bytes)
        self._source = source
        self._destination = destination
        self._slices = slices
        self._peer = peer
        self._checksums = checksums

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        if self._peer.is_dead:
            raise PeerLost(f"process {self._peer.process.pid} has ended")
        sums = copy_blocks(
            self._source, self._destination, self._slices, write, checksums=self._checksums
        )
        return lambda: sums

    def close(self) -> None:
        self._peer.close()


def _map_of(process: ProcessId, fd: int, name: str, size_bytes: int) -> Tensor:
    """The memory that `process` offers under `fd`; PeerLost where it is not (or no longer) that."""
    path = Path(f"/proc/{process.pid}/fd/{fd}")
    try:
        own_fd = os.open(path, os.O_RDWR)
    except OSError as error:
        raise PeerLost(f"cannot map the memory of process {process.pid}: {error}") from error
    try:
        found = str(Path(f"/proc/self/fd/{own_fd}").readlink())
        if found != f"/memfd:{name} (deleted)" or os.fstat(own_fd).st_size != size_bytes:
            raise PeerLost(f"{path} is not the memory that was offered but {found}")
        return _map(own_fd, size_bytes)
    finally:
        os.close(own_fd)


def _map(fd: int, size_bytes: int) -> Tensor:
    """The memory as a tensor [size_bytes], which keeps the mapping alive."""
    mapped = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return torch.frombuffer(mapped, dtype=torch.uint8)
