"""What computing prompt tokens costs on one pool, as its worker measured it and a router predicts by it.

A step of n new tokens takes quadratic_s n^2 + linear_s n + fixed_s seconds. A prompt is computed in steps of
at most `step_tokens`, so its own cost is nearly linear, and every step of it pays `fixed_s` again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The order in which a pool computes prompts: the least first of what is left to be computed, less this many
# seconds for every second of waiting. At 1 it is that of arrival plus own work: nobody is passed by prompts
# that come later than its own work takes, and among those that come at once the shorter ones go first.
AGEING = 1.0


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Coefficients in seconds per token squared, per token, and per step; none is negative."""

    quadratic_s: float
    linear_s: float
    fixed_s: float
    step_tokens: int

    @classmethod
    def at_rate(cls, tokens_per_s: float) -> PrefillCost:
        """Where nothing but a rate is known."""
        return cls(0.0, 1.0 / tokens_per_s, 0.0, 1 << 20)

    def step_s(self, num_tokens: int) -> float:
        """A step of `num_tokens`, whichever prompts they are of."""
        return (self.quadratic_s * num_tokens + self.linear_s) * num_tokens + self.fixed_s

    def prompt_s(self, num_tokens: int) -> float:
        """A prompt that lacks `num_tokens`, alone, in as many steps as it takes."""
        num_full, rest = divmod(num_tokens, self.step_tokens)
        full_s = num_full * self.step_s(self.step_tokens) if num_full else 0.0
        return full_s + self.step_s(rest) if rest else full_s

    def cheapest_step(self, most: int) -> int:
        """The size of step, at most `most`, at which a token costs least: larger ones pay for the
        square, smaller ones for the step."""
        if self.quadratic_s * most * most <= self.fixed_s:
            return most
        return max(1, int(math.sqrt(self.fixed_s / self.quadratic_s)))
