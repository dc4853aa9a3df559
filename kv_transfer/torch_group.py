"""A torch.distributed process group of two ranks, without a global one: Gloo for the CPU, NCCL for CUDA.

Many exist side by side. Any error or timeout is the end of a group: Gloo closes its socket then.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroupGloo, Work

from baton.errors import PeerLost
from kv_transfer.framing import Connection

_NOW = timedelta(milliseconds=1)


class _Group(Protocol):
    """What is used of a process group. `tag` tells apart what goes between the same two ranks."""

    def send(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...
    def abort(self) -> None: ...


class PairGroup:
    """One end of a pair. What is sent arrives in the order in which it was sent. Any error is PeerLost, and
    the end of the group: it is to be closed."""

    def __init__(self, group: _Group, store: Store, peer: int, device: torch.device) -> None:
        self._group = group
        self._store = store  # the group uses it as long as it lives
        self._peer = peer
        self._device = device

    def send(self, tensor: Tensor) -> Work:
        with loss_of_peer():
            return self._group.send([tensor], self._peer, 0)

    def receive(self, tensor: Tensor) -> Work:
        with loss_of_peer():
            return self._group.recv([tensor], self._peer, 0)

    def wait(self, works: Iterable[Work], timeout_s: float) -> None:
        """Each has `timeout_s` after the one before: a slow peer is no dead peer."""
        with loss_of_peer():
            for work in works:
                work.wait(timedelta(seconds=timeout_s))
            if self._device.type == "cuda":  # there, `wait` only orders streams
                torch.cuda.current_stream(self._device).synchronize()

    def close(self, works: Iterable[Work]) -> None:
        """Ends the group. `works` are those that are not over: nothing of them moves any more."""
        if self._device.type == "cuda":
            self._group.abort()
            return
        # Gloo's `abort` stops nothing that is under way; a wait that times out closes its socket.
        for work in works:
            with suppress(RuntimeError):
                work.wait(_NOW)


def join(connection: Connection, rank: int, device: torch.device, timeout_s: float) -> PairGroup:
    """Makes the group together with the other end of `connection`, which nobody else uses meanwhile.

    Returns when both are connected; PeerLost where the other does not come.
    """
    timeout = timedelta(seconds=timeout_s)
    store = _PairStore(connection, timeout_s)
    with loss_of_peer():
        if device.type == "cuda":
            return PairGroup(_nccl(store, rank, timeout), store, 1 - rank, device)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timeout
        options._threads = 1  # none of its collectives are used
        options._devices = [_gloo_device(connection.local_host)]
        group = cast(_Group, ProcessGroupGloo(store, rank, 2, options))
        return PairGroup(group, store, 1 - rank, device)


@contextmanager
def loss_of_peer() -> Iterator[None]:
    """torch.distributed says RuntimeError to a closed connection and to a timeout."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"torch.distributed: {error}") from error


class _PairStore(Store):
    """The key-value store by which two ranks find each other: what one sets, the other is sent.

    torch's own TCPStore would need a port and a thread per receiver, and connecting to it times out
    about once in some hundred times.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        super().__init__()
        self._connection = connection
        self._timeout_s = timeout_s
        self._values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        self._values[key] = value
        self._connection.send({"key": key, "value": value}, self._timeout_s)

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._values[key]

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        while any(key not in self._values for key in keys):
            word = self._connection.receive(self._timeout_s, key=str, value=bytes)
            self._values[word["key"]] = word["value"]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)


def _nccl(store: Store, rank: int, timeout: timedelta) -> _Group:
    from torch.distributed import ProcessGroupNCCL  # absent from torch for the CPU

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return cast(_Group, ProcessGroupNCCL(store, rank, 2, options))


@functools.cache
def _gloo_device(host: str) -> Any:
    """One thread of Gloo serves all groups of this process that use this address."""
    return ProcessGroupGloo.create_device(hostname=host)
