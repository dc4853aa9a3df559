"""A router by the published rule of Dynamo's: the cost of a worker is the blocks of prompts that it has to
compute, those of this request that it lacks among them, and the blocks of what it decodes; the least costly
one is taken. A baseline for replays: what it knows of caches is what they have told. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from baton.planner.requests import SimulatedRequest
from baton.planner.routing import Start, forward_changes
from baton.types import BlockId, PoolId, PoolLoad
from router.routing.index import BlockIndex


class OverlapRouting:
    """Prefill workers are judged by prompts and caches, decode workers by what they hold: two routers, as
    where Dynamo is disaggregated. Requests start at once."""

    def __init__(
        self, prefill: Sequence[PoolId], decode: Sequence[PoolId], block_size: int, start: Start
    ) -> None:
        self._prefill = prefill
        self._decode = decode
        self._block_size = block_size
        self._start = start
        self._index = BlockIndex()
        self._num_queued: Counter[PoolId] = Counter()  # prompt tokens that are not computed yet
        self._num_decoding: Counter[PoolId] = Counter()  # blocks
        self._num_given: Counter[PoolId] = Counter()  # requests; ties go to who got least
        self._num_missing: dict[int, int] = {}  # by request, in tokens

    def arrive(self, request: SimulatedRequest, now_s: float) -> None:
        arrival = request.arrival
        hits = self._index.match(arrival.block_ids, self._block_size)

        def cost_of(pool: PoolId) -> tuple[int, int]:
            num_missing = arrival.num_prompt_tokens - hits.get(pool, 0)
            return self._num_queued[pool] + num_missing, self._num_given[pool]

        decode = min(
            self._decode, key=lambda pool: (self._num_decoding[pool], self._num_given[pool])
        )
        prefill = min(self._prefill, key=cost_of, default=None)
        computing = prefill or decode
        num_missing = max(1, arrival.num_prompt_tokens - hits.get(computing, 0))
        self._num_missing[request.index] = num_missing
        self._num_queued[computing] += num_missing
        self._num_decoding[decode] += self._num_blocks(request)
        for pool in dict.fromkeys((computing, decode)):
            self._num_given[pool] += 1
        request.routed_s = now_s
        self._start(request, prefill, decode)

    def note_changes(self, pool: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        forward_changes(self._index, pool, changes)

    def note_load(self, load: PoolLoad, now_s: float) -> None:
        pass

    def note_computed(self, request: SimulatedRequest, now_s: float) -> None:
        computing = PoolId(request.prefill or request.decode)
        self._num_queued[computing] -= self._num_missing.pop(request.index)

    def note_finished(self, request: SimulatedRequest, now_s: float) -> None:
        self._num_decoding[PoolId(request.decode)] -= self._num_blocks(request)

    def _num_blocks(self, request: SimulatedRequest) -> int:
        return -(-request.arrival.num_prompt_tokens // self._block_size)
