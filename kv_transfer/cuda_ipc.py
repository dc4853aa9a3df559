"""CUDA IPC: the decode rank's pool on a GPU of this host, mapped by the prefill rank, which copies into it.

The two are processes on one GPU, or on two that reach each other. Copies and checksums run on the link's
stream, behind what the engine had queued when a write was asked for; neither the engine's thread nor its
stream waits (`kv_transfer.streams`). Only the link's thread does, for a portion to have been copied, while
the next one is queued already.

Both processes must see both GPUs, whatever their numbers: an offer names the GPU by its UUID.

Nobody can take a mapping back, and a closed receiver does not stop one from being made: `revoke` is proven
only by the writer's word or its death. When a process has died the driver ends its copies; that this is
over by the time its pidfd tells of the death is not documented by CUDA.

Not run by us: there was no GPU.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from baton.errors import ConfigError, PeerLost
from kv_transfer import tensor_copy, wire_format
from kv_transfer.base import Revocation, TransferId, Write
from kv_transfer.cuda_driver import Mapping, export
from kv_transfer.layout import Slice, plan
from kv_transfer.link import Finish, Flow, OrderedLink
from kv_transfer.peer_process import PeerProcess, ProcessId, own_process_id
from kv_transfer.pool import Pool

_DEPTH = 2  # one is copied, one is queued
_PORTION_BYTES = 128 << 20  # some 0.1 ms of copying within a GPU, 5 ms between two over PCIe

_own: dict[str, Tensor] = {}  # CUDA does not let a process map what it exports itself


class CudaIpcReceiver:
    """Offers `pool`, which lies on a GPU. ConfigError where its memory cannot be shared."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._handle, self._offset = export(pool.memory)
        self._name = secrets.token_hex(16)
        _own[self._name] = pool.memory

    def offer(self) -> bytes:
        process = own_process_id()
        return wire_format.pack(
            {
                "pid": process.pid,
                "start_ticks": process.start_ticks,
                "name": self._name,
                "gpu": _uuid(self._pool.memory.get_device()),
                "handle": self._handle,
                "offset": self._offset,
                "layout": wire_format.pack_layout(self._pool.layout),
            }
        )

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        """Nothing to do: whoever has mapped the pool can write into it."""

    def revoke(self, transfer: TransferId) -> Revocation:
        return Revocation.NEEDS_FENCE

    def close(self) -> None:
        _own.pop(self._name, None)


_OFFER = {
    "pid": int,
    "start_ticks": int,
    "name": str,
    "gpu": str,
    "handle": bytes,
    "offset": int,
    "layout": dict,
}


class CudaIpcSender:
    """Writes from `pool`, which lies on a GPU, into pools that it maps."""

    def __init__(self, pool: Pool, *, checksums: bool = True) -> None:
        if not pool.memory.is_cuda:
            raise ConfigError(
                f"cuda_ipc moves no memory of {pool.memory.device}", field="transports"
            )
        self.pool = pool
        self.checksums = checksums

    def connect(self, offer: bytes) -> OrderedLink:
        fields = wire_format.unpack(offer, **_OFFER)
        layout = wire_format.unpack_layout(fields["layout"])
        slices = plan(self.pool.layout, layout)
        process = ProcessId(fields["pid"], fields["start_ticks"])
        with ExitStack() as undo:
            peer = PeerProcess(process)
            undo.callback(peer.close)
            mapping = None
            if process == own_process_id():
                memory = _own_memory(fields["name"])
            else:
                gpu = _device(fields["gpu"])
                mapping = Mapping(fields["handle"], fields["offset"], layout.size_bytes, gpu)
                undo.callback(mapping.close)
                memory = mapping.memory
            wire = _CudaIpcWire(self, Pool(layout, memory), mapping, slices, peer)
            link = OrderedLink(wire, f"cuda-ipc-{process.pid}", self.pool.memory.device)
            undo.pop_all()
        return link


class _CudaIpcWire:
    """A connected decode rank, on its link's thread and stream."""

    def __init__(
        self,
        sender: CudaIpcSender,
        destination: Pool,
        mapping: Mapping | None,
        slices: Sequence[Slice],
        peer: PeerProcess,
    ) -> None:
        layout = destination.layout
        self.flow = Flow(layout.piece_bytes, _PORTION_BYTES, _DEPTH)
        self._sender = sender
        self._mapping = mapping
        self._source = tensor_copy.as_words(sender.pool.memory, sender.pool.layout)
        self._destination: Tensor | None = tensor_copy.as_words(destination.memory, layout)
        self._piece_words = layout.piece_words
        self._slices = slices
        self._peer = peer

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        if self._peer.is_dead:
            raise PeerLost(f"process {self._peer.process.pid} has ended")
        assert self._destination is not None
        tensor_copy.copy_pieces(self._source, self._destination, self._slices, write)
        copied = torch.cuda.Event(blocking=True)  # a thread that waits sleeps
        copied.record()
        sums = self._sums(write)

        def finish() -> list[int]:
            copied.synchronize()
            if sums is None:
                return [0] * len(write.source_blocks)
            return tensor_copy.as_checksums(sums)

        return finish

    def close(self) -> None:
        """After what was queued has run. Where it failed, the context is broken and runs nothing more."""
        with ExitStack() as steps:
            steps.callback(self._peer.close)
            if self._mapping is not None:
                steps.callback(self._mapping.close)
            self._destination = None
            torch.cuda.current_stream(self._source.device).synchronize()

    def _sums(self, write: Write) -> Tensor | None:
        if not self._sender.checksums:
            return None
        return tensor_copy.sum_pieces(
            self._source, write.source_blocks, write.layers, self._slices, self._piece_words
        )


def _own_memory(name: str) -> Tensor:
    if name not in _own:
        raise PeerLost("the receiver is closed")
    return _own[name]


def _uuid(device: int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _device(uuid: str) -> torch.device:
    """The GPU of that name; PeerLost where this process does not see it."""
    for number in range(torch.cuda.device_count()):
        if _uuid(number) == uuid:
            return torch.device("cuda", number)
    raise PeerLost(f"GPU {uuid} is not visible here (CUDA_VISIBLE_DEVICES)")
