"""What workers have measured of themselves, and how much of it is believed. Pure.

A worker measures itself once before it registers, while others start beside it, and from then on by the work
that it gets. Three equal workers were seen to begin with 3,500, 6,700 and 11,800 tokens/s: taken at their
word, the last one gets everything, and the others never get the work by which they would learn better. So a
worker counts as the usual one until it has computed some prompts, and again when it has computed none for a
while; and what it measures then counts only where it is slower than usual by more than noise, for prompts
as long as the one that is asked about. Nobody counts as faster than usual: on cores that workers share,
whoever runs alone is fast because it runs alone. One that is faster has its queue empty sooner, and gets
more.
"""

from __future__ import annotations

from collections.abc import Sequence

from baton.prefill_cost import PrefillCost
from router.routing.pools import Pool

_NUM_ASKED = 8  # pools that tell what is usual
_NEARLY = 1.5  # the factor within which costs are not told apart
_DEFAULT_COST = PrefillCost.at_rate(1000.0)  # until any worker has measured its own
_DEFAULT_STEP_S = 0.02


class Measured:
    """Of the pools among which one request chooses."""

    def __init__(self, pools: Sequence[Pool], now_s: float) -> None:
        self._usual = usual_cost(pools) or _DEFAULT_COST
        self._usual_s: dict[int, float] = {}  # of so many tokens: most pools lack equally many
        self._now_s = now_s
        steps_s = sorted(pool.step_s for pool in _some(pools) if pool.step_s)
        self.step_s = steps_s[len(steps_s) // 2] if steps_s else _DEFAULT_STEP_S

    def compute_s(self, pool: Pool, num_tokens: int) -> float:
        """A prompt that lacks `num_tokens`, on `pool`."""
        usual_s = self._usual_s.get(num_tokens)
        if usual_s is None:
            usual_s = self._usual_s[num_tokens] = self._usual.prompt_s(num_tokens)
        if self._now_s < pool.believed_until_s and pool.cost is not None:
            own_s = pool.cost.prompt_s(num_tokens)
            if own_s > usual_s * _NEARLY:
                return own_s
        return usual_s


def usual_cost(pools: Sequence[Pool]) -> PrefillCost | None:
    """That of the middle one of those that have learned theirs, or of all while none has; None where
    nobody has measured anything. Of two in the middle the faster one, so that others are tried."""
    known = sorted((pool for pool in _some(pools) if pool.cost), key=lambda pool: pool.thousand_s)
    known = [pool for pool in known if pool.has_learned] or known
    return known[(len(known) - 1) // 2].cost if known else None


def _some(pools: Sequence[Pool]) -> Sequence[Pool]:
    return pools[:: max(1, len(pools) // _NUM_ASKED)]
