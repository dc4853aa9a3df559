"""A torch.distributed process group of two ranks, without a global one: Gloo for the CPU, NCCL for CUDA.

Many exist side by side. Any error or timeout is the end of a group: Gloo closes its socket then.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import ProcessGroupGloo, Work

from baton.errors import PeerLost


class Group(Protocol):
    """What is used of one. `tag` tells apart what goes between the same two ranks."""

    def send(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...
    def recv(self, tensors: list[Tensor], rank: int, tag: int, /) -> Work: ...


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where and under which name the two ranks of a group find each other."""

    host: str
    store_port: int
    name: str


def join(
    meeting: Meeting, rank: int, own_host: str, device: torch.device, timeout_s: float
) -> Group:
    """Returns when both ranks are connected; PeerLost where the other does not come."""
    timeout = timedelta(seconds=timeout_s)
    with loss_of_peer():
        # A client of its own: a store answers one thread at a time, and this one waits.
        client = TCPStore(
            meeting.host,
            meeting.store_port,
            is_master=False,
            wait_for_workers=False,
            timeout=timeout,
        )
        store = PrefixStore(meeting.name, client)
        if device.type == "cuda":
            return _nccl(store, rank, timeout)
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timeout
        options._devices = [_gloo_device(own_host)]
        return cast(Group, ProcessGroupGloo(store, rank, 2, options))


def _nccl(store: Store, rank: int, timeout: timedelta) -> Group:
    from torch.distributed import ProcessGroupNCCL  # absent from torch for the CPU

    options = ProcessGroupNCCL.Options()
    options._timeout = timeout
    return cast(Group, ProcessGroupNCCL(store, rank, 2, options))


@functools.cache
def _gloo_device(host: str) -> Any:
    """One thread of Gloo serves all groups of this process that use this address."""
    return ProcessGroupGloo.create_device(hostname=host)


def wait(works: Sequence[Work], timeout_s: float, device: torch.device) -> None:
    """Each has `timeout_s` after the one before: a slow peer is no dead peer."""
    for work in works:
        work.wait(timedelta(seconds=timeout_s))
    if device.type == "cuda":  # there, `wait` only orders streams
        torch.cuda.current_stream(device).synchronize()


@contextmanager
def loss_of_peer() -> Iterator[None]:
    """torch.distributed says RuntimeError to a closed connection and to a timeout."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(f"torch.distributed: {error}") from error
