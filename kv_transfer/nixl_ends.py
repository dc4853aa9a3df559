"""The two ends of a pair in NIXL (package `nixl`, the extra `rdma`), each with a UCX worker of its own.

Closing an end destroys its worker: its connections are closed, and its memory is deregistered. The first end
of a process takes half a second, because NIXL looks at all of its plugins, later ones 25 ms.

Knows addresses and sizes; neither blocks nor transfers.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from baton.errors import ConfigError, PeerLost
from kv_transfer.layout import Slice

_Place = tuple[str, int, int]  # NIXL's name for a kind of memory, an address, a device
_Numbers = NDArray[np.uint64]


class Handle(Protocol):
    """One write under way."""

    def release(self) -> None: ...


class _Agent(Protocol):
    """What is used of `nixl.nixl_agent`."""

    def register_memory(self, memory: Tensor) -> object: ...
    def deregister_memory(self, registered: object) -> None: ...
    def get_new_notifs(self) -> object: ...
    def get_agent_metadata(self) -> bytes: ...
    def add_remote_agent(self, metadata: bytes) -> str: ...
    def remove_remote_agent(self, name: str) -> None: ...
    def make_connection(self, name: str) -> None: ...
    def get_xfer_descs(self, ranges: object, kind: str) -> object: ...
    def initialize_xfer(self, way: str, ours: object, theirs: object, name: str) -> Handle: ...
    def transfer(self, handle: Handle) -> str: ...
    def check_xfer_state(self, handle: Handle) -> str: ...


def is_installed() -> bool:
    return importlib.util.find_spec("nixl") is not None


class PassiveEnd:
    """`memory` may be written to by the other end. Connections are made, and what comes over TCP is written
    to memory, only while somebody calls `progress`: a thread of NIXL's would do so at the price of a core.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        with _failure():
            self._agent = _agent()
            self._registered = self._agent.register_memory(memory)

    def progress(self) -> None:
        """Does what is to be done now, without waiting."""
        with _failure():
            self._agent.get_new_notifs()  # nobody notifies; asking makes UCX work

    def describe(self) -> dict[str, Any]:
        """What `WritingEnd` needs, for msgpack."""
        metadata = self._agent.get_agent_metadata()
        kind, address, device = _place(self._memory)
        return {"agent": metadata, "kind": kind, "address": address, "device": device}

    def close(self) -> None:
        """Nothing of the other end lands any more. To be called once."""
        with _failure(), ExitStack() as steps:
            steps.callback(delattr, self, "_agent")
            steps.callback(self._agent.deregister_memory, self._registered)


DESCRIPTION = {"agent": bytes, "kind": str, "address": int, "device": int}


class WritingEnd:
    """Writes from `memory` into that of the end described. Every call is made by one thread, which moves
    the bytes while it asks `is_done`; where they can be copied within the host, already in `write`."""

    def __init__(self, memory: Tensor, described: dict[str, Any]) -> None:
        self._place = _place(memory)
        self._target = described["kind"], described["address"], described["device"]
        self._under_way: list[Handle] = []
        with _failure():
            self._agent = _agent()
            self._registered = self._agent.register_memory(memory)
            self._peer = self._agent.add_remote_agent(described["agent"])
            self._agent.make_connection(self._peer)

    def write(self, ranges: Sequence[Slice]) -> Handle:
        table = np.array([(r.source, r.destination, r.size_bytes) for r in ranges], np.uint64)
        with _failure():
            ours = self._ranges(self._place, table[:, 0], table[:, 2])
            theirs = self._ranges(self._target, table[:, 1], table[:, 2])
            handle = self._agent.initialize_xfer("WRITE", ours, theirs, self._peer)
            self._under_way.append(handle)
            if self._agent.transfer(handle) == "ERR":
                raise PeerLost("NIXL could not write")
        return handle

    def is_done(self, handle: Handle) -> bool:
        """Whether all of it lies in the other end's memory. It is asked until it does."""
        with _failure():
            state = self._agent.check_xfer_state(handle)
            if state == "PROC":
                return False
            self._under_way.remove(handle)
            handle.release()
        if state != "DONE":
            raise PeerLost("NIXL could not write")
        return True

    def close(self) -> None:
        """Nothing is read from the memory any more. To be called once."""
        with _failure(), ExitStack() as steps:  # each is taken, whatever the one before it raises
            steps.callback(delattr, self, "_agent")
            steps.callback(self._agent.deregister_memory, self._registered)
            steps.callback(self._agent.remove_remote_agent, self._peer)
            for handle in self._under_way:
                steps.callback(handle.release)
            self._under_way.clear()

    def _ranges(self, place: _Place, offsets: _Numbers, sizes: _Numbers) -> object:
        kind, address, device = place
        table = np.empty((len(sizes), 3), np.uint64)
        table[:, 0] = offsets + np.uint64(address)
        table[:, 1] = sizes
        table[:, 2] = device
        return self._agent.get_xfer_descs(table, kind)


def _place(memory: Tensor) -> _Place:
    kind, device = ("VRAM", memory.get_device()) if memory.is_cuda else ("DRAM", 0)
    return kind, memory.data_ptr(), device


def _agent() -> _Agent:
    api = _library()
    config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
    return cast(_Agent, api.nixl_agent(secrets.token_hex(16), config))


def _library() -> Any:
    try:
        library = importlib.import_module("nixl")
    except ImportError as error:
        raise ConfigError(
            f"nixl needs the extra 'rdma' (package nixl): {error}", field="transports"
        ) from error
    log = logging.getLogger("nixl")  # which has set itself up to write to stdout
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.WARNING)
    return library


@contextmanager
def _failure() -> Iterator[None]:
    """NIXL's errors have no common class."""
    try:
        yield
    except (PeerLost, ConfigError):
        raise
    except Exception as error:
        raise PeerLost(f"NIXL: {error!r}") from error
