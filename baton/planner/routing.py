"""A router in simulated time: the real admission, policy, index, pools and commitments, told of the workers
as a router is. And the way of those who know nothing: round robin. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol

from baton.planner.requests import SimulatedRequest
from baton.types import BlockId, PoolId, PoolLoad, WorkerInfo
from router.admission.admission import Admission, Ask
from router.admission.capacity import capacity_of
from router.admission.fair_queue import Ticket
from router.routing.chooser import Chooser, PromptBlocks
from router.routing.commitment import Commitment
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pool, Pools

# A request, the prefill pool that computes its prompt (None: the decode pool itself), and the decode pool.
Start = Callable[[SimulatedRequest, PoolId | None, PoolId], None]


class Routing(Protocol):
    """Where requests go, and when."""

    def arrive(self, request: SimulatedRequest, now_s: float) -> None: ...

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None: ...

    def note_load(self, load: PoolLoad, now_s: float) -> None: ...

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None: ...

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None: ...


class RoundRobin:
    """Each pool in turn, at once."""

    def __init__(self, prefill: Sequence[PoolId], decode: Sequence[PoolId], start: Start) -> None:
        self._prefill = prefill
        self._decode = decode
        self._start = start
        self._next = 0

    def arrive(self, request: SimulatedRequest, now_s: float) -> None:
        number, self._next = self._next, self._next + 1
        prefill = self._prefill[number % len(self._prefill)] if self._prefill else None
        request.routed_s = now_s
        self._start(request, prefill, self._decode[number % len(self._decode)])

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        pass

    def note_load(self, load: PoolLoad, now_s: float) -> None:
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
        start: Start,
    ) -> None:
        self.pools = Pools()
        self._chooser = Chooser(self.pools, BlockIndex(), settings)
        self._admission = Admission()
        self._block_size = block_size
        self._kv_bytes_per_token = kv_bytes_per_token
        self._start = start
        self._waiting: dict[Ticket, tuple[SimulatedRequest, PromptBlocks]] = {}
        self._in_flight: dict[int, tuple[Ticket, Commitment]] = {}
        for worker in workers:
            self.pools.put(worker)
        (self._weights,) = {worker.weights for worker in workers}

    def arrive(self, request: SimulatedRequest, now_s: float) -> None:
        arrival = request.arrival
        prompt = PromptBlocks(
            self._weights,
            arrival.num_prompt_tokens,
            arrival.block_ids,
            self._block_size,
            self._kv_bytes_per_token,
        )
        num_missing = prompt.num_tokens - self._chooser.hits(prompt).most
        ask = Ask(work_s=self._admission.work_s(num_missing))
        self._waiting[self._admission.enter(ask, now_s)] = request, prompt
        self._settle(now_s)

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        forward_changes(self._chooser.index, pool, changes)

    def note_load(self, load: PoolLoad, now_s: float) -> None:
        self.pools.report(load)
        self._admission.capacity = capacity_of(self.pools, self._weights.model)
        self._settle(now_s)

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None:
        ticket, commitment = self._in_flight[request.index]
        commitment.computed(now_s)
        self._admission.computed(ticket)
        self._settle(now_s)

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None:
        ticket, commitment = self._in_flight.pop(request.index)
        commitment.end(now_s)
        assert request.routed_s is not None
        self._admission.finish(ticket, now_s - request.routed_s)
        self._settle(now_s)

    def _settle(self, now_s: float) -> None:
        if not self._waiting:
            return
        started, refused = self._admission.settle(now_s)
        for ticket in started:
            self._route(ticket, *self._waiting.pop(ticket), now_s)
        for ticket, _ in refused:
            request, _ = self._waiting.pop(ticket)
            request.refused = True

    def _route(
        self, ticket: Ticket, request: SimulatedRequest, prompt: PromptBlocks, now_s: float
    ) -> None:
        choice = self._chooser.choose(prompt, _takes, now_s)
        assert choice is not None, "there is a decode pool"
        request.routed_s, request.predicted_ttft_s = now_s, choice.way.ttft_s
        self._in_flight[request.index] = ticket, self._chooser.commit(choice, prompt, now_s)
        self._start(request, choice.prefill.id if choice.prefill else None, choice.decode.id)


def forward_changes(
    index: BlockIndex, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]
) -> None:
    """What `pool` has published (True) and forgotten, in order."""
    for is_stored, run in groupby(changes, key=lambda change: change[0]):
        (index.store if is_stored else index.remove)(pool, [each for _, each in run])


def _takes(pool: Pool) -> bool:
    return True
