"""All of a router's routing: what it knows of pools and blocks, and the pair that follows from it. Pure: the
same calls in the same order choose the same pairs, in a router, in the simulator, and from a record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.types import BlockId, Role, Weights
from router.routing.commitment import Commitment
from router.routing.index import BlockIndex, Matches
from router.routing.policy import Choice, Demand, PolicySettings, choose
from router.routing.pools import Pool, Pools
from router.routing.shortlist import shortlist
from router.routing.workload import Workload

Takes = Callable[[Pool], bool]  # whether a pool can take a request now


@dataclass(frozen=True, slots=True)
class PromptBlocks:
    """A prompt as routing sees it. `block_ids`: of its full blocks."""

    weights: Weights
    num_tokens: int
    block_ids: Sequence[BlockId]
    block_size: int
    kv_bytes_per_token: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """`by_decode`: the best way to each candidate, best first. `by_prefill`: each candidate to compute the
    prompt for the chosen decode pool, where it was computed elsewhere."""

    choice: Choice
    by_decode: Sequence[Choice]
    by_prefill: Sequence[Choice]


class Chooser:
    def __init__(self, pools: Pools, index: BlockIndex, settings: PolicySettings) -> None:
        self.pools = pools
        self.index = index
        self.settings = settings
        self._workload_of = defaultdict[Weights, Workload](Workload)
        self._matched: tuple[Sequence[BlockId], int, Matches] | None = None

    def hits(self, prompt: PromptBlocks) -> Matches:
        """The leading tokens that each pool has cached or is about to have."""
        # Admission asks, and in most cases routing does in the same instant.
        block_ids, version = prompt.block_ids, self.index.version
        if self._matched and self._matched[0] is block_ids and self._matched[1] == version:
            return self._matched[2]
        matches = self.index.match(block_ids, prompt.block_size)
        self._matched = block_ids, version, matches
        return matches

    def choose(self, prompt: PromptBlocks, takes: Takes, now_s: float) -> Choice | None:
        """The best pair of those pools that `takes` allows; None where no decode pool is among them."""
        return self.predict(prompt, takes, now_s)

    def predict(self, prompt: PromptBlocks, takes: Takes, now_s: float) -> Choice | None:
        """What `choose` would choose, where nothing may come of it."""
        hits = self.hits(prompt)
        decode, prefill = self._candidates(prompt, hits, takes)
        return self._best(prompt, hits, decode, prefill, now_s)

    def reroute(
        self, commitment: Commitment, prompt: PromptBlocks, takes: Takes, now_s: float
    ) -> Choice:
        """The best other way to a decode pool that is settled, to which the commitment moves."""
        commitment.computed(now_s)  # so that it does not count where it was
        hits = self.hits(prompt)
        _, prefill = self._candidates(prompt, hits, takes)
        choice = self._best(prompt, hits, [commitment.choice.decode], prefill, now_s)
        assert choice is not None  # the decode pool itself can
        commitment.move(choice, now_s)
        return choice

    def commit(self, choice: Choice, prompt: PromptBlocks, now_s: float) -> Commitment:
        """Makes the choice count, until the commitment's end."""
        self._workload_of[prompt.weights].note(choice.way.compute_s)
        return self._commitment(choice, prompt, now_s)

    def _commitment(self, choice: Choice, prompt: PromptBlocks, now_s: float) -> Commitment:
        return Commitment(choice, prompt.block_ids, prompt.block_size, self.index, now_s)

    def explain(self, prompt: PromptBlocks, takes: Takes, now_s: float) -> Explanation | None:
        """What `choose` would choose, and what it would be chosen from."""
        hits = self.hits(prompt)
        decode, prefill = self._candidates(prompt, hits, takes)
        choice = self._best(prompt, hits, decode, prefill, now_s)
        if choice is None:
            return None
        ways = [self._best(prompt, hits, [pool], prefill, now_s) for pool in decode]
        legs = [self._best(prompt, hits, [choice.decode], [pool], now_s) for pool in prefill]
        return Explanation(
            choice,
            sorted((way for way in ways if way), key=lambda way: way.way.cost_s),
            sorted(
                (leg for leg in legs if leg and leg.remote),
                key=lambda leg: leg.remote.cost_s if leg.remote else 0.0,
            ),
        )

    def _candidates(
        self, prompt: PromptBlocks, hits: Matches, takes: Takes
    ) -> tuple[Sequence[Pool], Sequence[Pool]]:
        """Decode and prefill pools. A prefill worker may be made for shorter prompts."""

        def can(pool: Pool) -> bool:
            is_decode = pool.worker.role is Role.DECODE
            return (is_decode or prompt.num_tokens <= pool.worker.max_model_len) and takes(pool)

        return shortlist(self.pools, prompt.weights, hits, can)

    def _best(
        self,
        prompt: PromptBlocks,
        hits: Matches,
        decode: Sequence[Pool],
        prefill: Sequence[Pool],
        now_s: float,
    ) -> Choice | None:
        demand = Demand(prompt.num_tokens, hits, prompt.kv_bytes_per_token)
        long_s = self._workload_of[prompt.weights].long_s
        return choose(demand, decode, prefill, self.settings, now_s, long_s)
