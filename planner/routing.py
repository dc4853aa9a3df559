"""A router in simulated time: the real policy, index, pools and commitments, told of the workers as a router
is. And the way of those who know nothing: round robin. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from baton.types import BlockId, PoolId, PoolLoad, WorkerInfo
from planner.requests import SimulatedRequest
from router.chooser import Chooser, PromptBlocks
from router.commitment import Commitment
from router.index import BlockIndex
from router.policy import PolicySettings
from router.pools import Pool, Pools


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
        self._chooser = Chooser(self.pools, BlockIndex(), settings)
        self._block_size = block_size
        self._kv_bytes_per_token = kv_bytes_per_token
        self._commitments: dict[int, Commitment] = {}
        for worker in workers:
            self.pools.put(worker)
        (self._model,) = {worker.model for worker in workers}

    def route(self, request: SimulatedRequest, now_s: float) -> tuple[PoolId | None, PoolId]:
        arrival = request.arrival
        prompt = PromptBlocks(
            self._model,
            arrival.num_prompt_tokens,
            arrival.block_ids,
            self._block_size,
            self._kv_bytes_per_token,
        )
        choice = self._chooser.choose(prompt, _takes, now_s)
        assert choice is not None, "there is a decode pool"
        request.predicted_ttft_s = choice.way.ttft_s
        self._commitments[request.index] = self._chooser.commit(choice, prompt, now_s)
        return (choice.prefill.id if choice.prefill else None), choice.decode.id

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        index = self._chooser.index
        for is_stored, run in groupby(changes, key=lambda change: change[0]):
            (index.store if is_stored else index.remove)(pool, [each for _, each in run])

    def note_load(self, load: PoolLoad) -> None:
        self.pools.report(load)

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None:
        if commitment := self._commitments.get(request.index):
            commitment.computed(now_s)

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None:
        if commitment := self._commitments.pop(request.index, None):
            commitment.end(now_s)


def _takes(pool: Pool) -> bool:
    return True
