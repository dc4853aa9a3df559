"""Reads blocks that arrived, as they lie in this worker's pool, on a thread of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from kv_transfer.pool import Pool
from kv_transfer.streams import use_side_stream

Arrived = Callable[[int], None]


class Verifier:
    """With `verify` off the writer's own word is taken for what arrived: for links that are trusted,
    where reading every block once more costs too much. `arrived` hears of every block before that."""

    def __init__(self, pool: Pool, *, verify: bool, arrived: Arrived | None = None) -> None:
        self.layout = pool.layout
        self._pool = pool
        self._verify = verify
        self._arrived = arrived
        self._thread = ThreadPoolExecutor(
            1, "verify", initializer=use_side_stream, initargs=(pool.memory.device,)
        )

    def checksum(self, block: int, told: int) -> Future[int]:
        """Of `block` as it lies here now. `told`: what its writer says it is."""
        return self._thread.submit(self._read, block, told)

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _read(self, block: int, told: int) -> int:
        if self._arrived is not None:
            self._arrived(block)
        return self._pool.checksum(block) if self._verify else told
