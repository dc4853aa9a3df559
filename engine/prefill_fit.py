"""Learns what a prefill step of n tokens costs, a n^2 + b n + c, from the steps that were. Pure.

Steps are averaged by size first (bins half an octave wide), each average moving slowly and by bounded
factors, so that neither an outlier nor the size that happens to be common bends the curve. The curve is the
least-squares one through the averages, by relative error, whose coefficients are not negative; of terms that
the sizes seen cannot tell apart only the first few are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from baton.prefill_cost import PrefillCost
from engine.least_squares import dot, least_squares

_WEIGHT = 0.2  # of a new observation in its bin's average
_MAX_FACTOR = 2.0  # by which it may differ from the average before it is clipped
_SCALE = 1024.0  # tokens are counted in these, so that the three terms are of one magnitude
_POWERS = ((1,), (1, 0), (2, 1), (2, 1, 0))  # of n: the curves tried, plain ones first
_FIT_AGAIN = 16  # observations; averages move slowly, a size that is new tells more
_BETTER = 0.9  # a curve of more terms must leave less than this share of the error


@dataclass(slots=True)
class _Bin:
    num_tokens: float
    step_s: float


@dataclass(slots=True)
class PrefillFit:
    _bins: dict[int, _Bin] = field(default_factory=dict)
    _terms: dict[int, float] = field(default_factory=dict)  # of the curve, by power of n
    _num_new: int = 0  # observations since the curve was found

    def observe(self, num_tokens: int, step_s: float) -> None:
        """Learns from one step of `num_tokens` that took `step_s`."""
        if num_tokens <= 0 or step_s <= 0:
            return
        self._num_new += 1
        index = round(2 * math.log2(num_tokens))
        known = self._bins.get(index)
        if known is None:
            self._bins[index] = _Bin(num_tokens, step_s)
            self._terms = {}
            return
        least, most = known.step_s / _MAX_FACTOR, known.step_s * _MAX_FACTOR
        known.step_s += _WEIGHT * (min(max(step_s, least), most) - known.step_s)
        known.num_tokens += _WEIGHT * (num_tokens - known.num_tokens)

    def cost(self, step_tokens: int) -> PrefillCost | None:
        """The curve through what was seen, for prompts in steps of `step_tokens`; None before that."""
        if not self._bins:
            return None
        if not self._terms or self._num_new >= _FIT_AGAIN:
            self._terms, self._num_new = self._best_curve(), 0
        terms = self._terms
        return PrefillCost(
            terms.get(2, 0.0) / _SCALE**2, terms[1] / _SCALE, terms.get(0, 0.0), step_tokens
        )

    def _best_curve(self) -> dict[int, float]:
        """The line through the origin is always among them."""
        curves = self._curves()
        least, best = next(curves)
        for error, terms in curves:
            if error < _BETTER * least:
                least, best = error, terms
        return best

    def _curves(self) -> Iterator[tuple[float, dict[int, float]]]:
        """Those whose coefficients are not negative, each with its squared relative error."""
        sizes = [each.num_tokens / _SCALE for each in self._bins.values()]
        times = [each.step_s for each in self._bins.values()]
        for powers in _POWERS:
            if len(powers) > len(sizes):
                return
            rows = [[n**power / t for power in powers] for n, t in zip(sizes, times, strict=True)]
            solution = least_squares(rows)
            if solution is not None and min(solution) >= 0:
                error = sum((dot(row, solution) - 1.0) ** 2 for row in rows)
                yield error, dict(zip(powers, solution, strict=True))
