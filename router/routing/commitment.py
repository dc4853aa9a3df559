"""What a choice makes true before any worker says so: a stream in flight, a prompt in a queue, and blocks on
their way, which are hits for whoever asks next. Pure.

    Commitment ── computed (the first token is there) ── end (nothing more will come)
                     └────────── move (another pool computes it now) ──┘
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.types import BlockId, PoolId
from router.routing.index import BlockIndex
from router.routing.policy import Choice
from router.routing.prefill_queue import Queued


class Commitment:
    """In force from its making. `block_ids`: of the prompt's full blocks, from the first on."""

    def __init__(
        self,
        choice: Choice,
        block_ids: Sequence[BlockId],
        block_size: int,
        index: BlockIndex,
        now_s: float,
    ) -> None:
        self.choice = choice
        self._block_ids = block_ids
        self._block_size = block_size
        self._index = index
        self._queued: Queued | None = None
        self._expected: list[tuple[PoolId, Sequence[BlockId]]] = []
        choice.decode.begin()
        self._begin(now_s)

    def move(self, choice: Choice, now_s: float) -> None:
        """From here on `choice`, of the same decode pool, says where the prompt is computed."""
        self.computed(now_s)
        self.choice = choice
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        choice, ids = self.choice, self._block_ids
        self._queued = choice.computing.enqueue(choice.num_missing, choice.way.compute_s, now_s)
        pools = dict.fromkeys((choice.decode.id, choice.computing.id))
        num_hits = max(0, choice.num_tokens - choice.num_missing) // self._block_size
        self._expected = [(pool, ids[num_hits:]) for pool in pools]
        self._index.touch(ids[:num_hits])
        for pool, missing in self._expected:
            self._index.expect(pool, missing)

    def computed(self, now_s: float) -> None:
        """The prompt is computed, or will not be; may be said again."""
        if self._queued is None:
            return
        self.choice.computing.dequeue(self._queued, now_s)
        self._queued = None
        for pool, missing in self._expected:
            self._index.settle(pool, missing)

    def end(self, now_s: float, num_output_tokens: int = 0) -> None:
        """`num_output_tokens` is for the record."""
        self.computed(now_s)
        self.choice.decode.end()
