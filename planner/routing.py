"""A router in simulated time: the real policy, index, pools and commitments, told of the workers as a router
is. And the way of those who know nothing: round robin. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from baton.types import BlockId, PoolId, PoolLoad, Role, WorkerInfo
from planner.requests import SimulatedRequest
from router.commitment import Commitment
from router.index import BlockIndex
from router.policy import Choice, Demand, PolicySettings, choose
from router.pools import Pools


class Routing(Protocol):
    """Where requests go. `route` names the prefill pool, None for the decode pool itself, and that."""

    def route(self, request: SimulatedRequest, now_s: float) -> tuple[PoolId | None, PoolId]: ...

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None: ...

    def note_load(self, load: PoolLoad) -> None: ...

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None: ...

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None: ...


class RoundRobin:
    """Each pool in turn."""

    def __init__(self, prefill: Sequence[PoolId], decode: Sequence[PoolId]) -> None:
        self._prefill = prefill
        self._decode = decode
        self._next = 0

    def route(self, request: SimulatedRequest, now_s: float) -> tuple[PoolId | None, PoolId]:
        number, self._next = self._next, self._next + 1
        decode = self._decode[number % len(self._decode)]
        return (self._prefill[number % len(self._prefill)] if self._prefill else None), decode

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        pass

    def note_load(self, load: PoolLoad) -> None:
        pass

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None:
        pass

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None:
        pass


class BatonRouting:
    """One router replica."""

    def __init__(
        self,
        workers: Sequence[WorkerInfo],
        block_size: int,
        kv_bytes_per_token: float,
        settings: PolicySettings,
    ) -> None:
        self.pools = Pools()
        self._index = BlockIndex()
        self._block_size = block_size
        self._kv_bytes_per_token = kv_bytes_per_token
        self._settings = settings
        self._commitments: dict[int, Commitment] = {}
        for worker in workers:
            self.pools.put(worker)
        (self._model,) = {worker.model for worker in workers}

    def route(self, request: SimulatedRequest, now_s: float) -> tuple[PoolId | None, PoolId]:
        choice = self._choose(request, now_s)
        request.predicted_ttft_s = choice.way.ttft_s
        ids, size = request.arrival.block_ids, self._block_size
        self._commitments[request.index] = Commitment(choice, ids, size, self._index, now_s)
        return (choice.prefill.id if choice.prefill else None), choice.decode.id

    def _choose(self, request: SimulatedRequest, now_s: float) -> Choice:
        arrival = request.arrival
        hits = self._index.match(arrival.block_ids, self._block_size)
        choice = choose(
            Demand(arrival.num_prompt_tokens, hits, self._kv_bytes_per_token),
            self.pools.serving(Role.DECODE, self._model),
            self.pools.serving(Role.PREFILL, self._model),
            self._settings,
            now_s,
        )
        assert choice is not None, "there is a decode pool"
        return choice

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        stored = [block_id for is_stored, block_id in changes if is_stored]
        removed = [block_id for is_stored, block_id in changes if not is_stored]
        # A block that was removed and stored again within one step is there; the other way is not.
        self._index.remove(pool, removed)
        self._index.store(pool, stored)

    def note_load(self, load: PoolLoad) -> None:
        self.pools.report(load)

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None:
        if commitment := self._commitments.get(request.index):
            commitment.computed(now_s)

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None:
        if commitment := self._commitments.pop(request.index, None):
            commitment.end(now_s)
