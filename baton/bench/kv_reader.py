"""The decode rank of `baton.bench.kv`, in a process of its own: a pool, a receiver, a raw socket beside it.

It obeys what comes down a pipe, one word at a time, and answers each.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch

from baton.errors import Internal
from kv_transfer.base import Receiver, TransferId
from kv_transfer.choose import Receivers
from kv_transfer.layout import PoolLayout
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory

HOST = "127.0.0.1"
TIMEOUT_S = 10.0


class Reader:
    """The other process, as this one sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.offer, self.port = self._hear()

    def open(self, transfer: TransferId, blocks: Sequence[int]) -> None:
        self._ask("open", transfer, list(blocks))

    def checksums(self, blocks: Sequence[int]) -> list[int]:
        """Of the blocks as they lie there."""
        found: list[int] = self._ask("checksums", list(blocks))
        return found

    def receive(self, size_bytes: int) -> None:
        """From now on it reads so many bytes from the raw socket; then it says so there."""
        self._ask("receive", size_bytes)

    def _ask(self, *words: object) -> Any:
        self._pipe.send(words)
        return self._hear()

    def _hear(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError as error:
            raise Internal("the reading process has ended") from error


def device(transport: str) -> torch.device:
    """Where the pools of both sides lie."""
    on_gpu = transport == "cuda_ipc" and torch.cuda.is_available()
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


@contextlib.contextmanager
def started(layout: PoolLayout, transport: str) -> Iterator[Reader]:
    """A reader with a pool of `layout`, reached by `transport` alone."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, layout, transport), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Reader(ours)
    finally:
        ours.close()  # the end of its pipe is its end
        process.join(TIMEOUT_S)
        process.kill()


def _main(pipe: Connection, layout: PoolLayout, transport: str) -> None:
    torch.set_num_threads(1)
    shared = SharedMemory(layout.size_bytes)
    pool = Pool(layout, shared.memory.to(device(transport)))
    receivers = Receivers(pool, shared, HOST, TIMEOUT_S, [transport])
    with socket.create_server((HOST, 0)) as listener, contextlib.suppress(EOFError):
        pipe.send((receivers.offer(), listener.getsockname()[1]))
        raw, _ = listener.accept()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with raw:
            _obey(pipe, pool, receivers[transport], raw, shared)
    receivers.close()


def _obey(
    pipe: Connection, pool: Pool, receiver: Receiver, raw: socket.socket, shared: SharedMemory
) -> None:
    memory = memoryview(shared.memory.numpy())  # type: ignore[arg-type]
    while True:
        match pipe.recv():
            case ["open", transfer, blocks]:
                receiver.open(transfer, blocks)
                pipe.send(None)
            case ["checksums", blocks]:
                pipe.send([pool.checksum(block) for block in blocks])
            case ["receive", size_bytes]:
                pipe.send(None)
                num_read = 0
                while num_read < size_bytes:
                    num_read += raw.recv_into(memory[num_read:size_bytes])
                raw.sendall(b".")
