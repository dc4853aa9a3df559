"""What the router knows of every pool: who serves it, how loaded it is, what this router has in flight.

Pure: reports and the router's own decisions go in, candidates come out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.types import PoolId, PoolLoad, Role, WorkerInfo


@dataclass(slots=True, eq=False)
class Pool:
    """One pool of one incarnation of a worker. What is in flight counts what this router has sent and
    not yet seen the end of; it leads the worker's own reports by a heartbeat. `num_queued_tokens`:
    prompt tokens that this router has asked the pool to compute and that are not computed yet."""

    id: PoolId
    worker: WorkerInfo
    load: PoolLoad | None = None
    draining: bool = False
    num_in_flight: int = 0
    num_queued_tokens: int = 0
    transfer_bytes_per_s: float = 0.0  # into this pool; 0 until measured

    @property
    def step_s(self) -> float:
        """A decode step's time; 0 until measured."""
        return self.load.decode_step_s if self.load else 0.0

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts a request as in flight here for as long as the block runs."""
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    @contextmanager
    def queued(self, num_tokens: int) -> Iterator[Queued]:
        """Counts prompt tokens that wait to be computed here, until they are or the block ends."""
        queued = Queued(self, num_tokens)
        self.num_queued_tokens += num_tokens
        try:
            yield queued
        finally:
            queued.done()

    def note_transfer(self, num_bytes: int, transfer_s: float) -> None:
        """Learns how fast KV arrives here."""
        if num_bytes and transfer_s > 0:
            rate, weight = num_bytes / transfer_s, 0.2
            known = self.transfer_bytes_per_s or rate
            self.transfer_bytes_per_s = known + weight * (rate - known)


@dataclass(slots=True)
class Queued:
    """Prompt tokens of one request that `pool` has still to compute."""

    pool: Pool
    num_tokens: int

    def done(self) -> None:
        self.pool.num_queued_tokens -= self.num_tokens
        self.num_tokens = 0


@dataclass(slots=True)
class Pools:
    """All pools of all live workers."""

    _by_id: dict[PoolId, Pool] = field(default_factory=dict)

    def put(self, worker: WorkerInfo, *, draining: bool = False) -> None:
        """Adds a worker's pools, or replaces those of an earlier incarnation."""
        for dp_rank in range(worker.num_dp_ranks):
            pool_id = PoolId(worker.worker_id, dp_rank)
            known = self._by_id.get(pool_id)
            if known is None or known.worker.incarnation != worker.incarnation:
                self._by_id[pool_id] = Pool(pool_id, worker, draining=draining)
            else:
                known.worker, known.draining = worker, draining

    def report(self, load: PoolLoad) -> None:
        pool = self._by_id.get(load.pool)
        if pool is not None and pool.worker.incarnation == load.incarnation:
            pool.load = load

    def remove(self, worker_id: str) -> None:
        for pool_id in [pool_id for pool_id in self._by_id if pool_id.worker_id == worker_id]:
            del self._by_id[pool_id]

    def get(self, pool_id: PoolId) -> Pool | None:
        return self._by_id.get(pool_id)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_id.values())

    def serving(self, role: Role, model: str) -> list[Pool]:
        """The pools that take new requests of `model` in `role`."""
        return [
            pool
            for pool in self
            if pool.worker.role is role and pool.worker.model == model and not pool.draining
        ]
