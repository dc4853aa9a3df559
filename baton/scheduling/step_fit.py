"""Learns what a step costs by what is in it, a n^2 + b n + c, from the steps that were. Pure.

Steps are averaged by size first (bins half an octave wide), each average moving slowly and by bounded
factors, so that neither an outlier nor the size that happens to be common bends the curve. The curve is the
least-squares one through the averages, by relative error, whose coefficients are not negative; of terms that
the sizes seen cannot tell apart only the first few are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from baton.prefill_cost import PrefillCost
from baton.scheduling.least_squares import dot, least_squares

_WEIGHT = 0.2  # of a new observation in its bin's average
_MAX_FACTOR = 2.0  # by which it may differ from the average before it is clipped
_SCALE = 1024.0  # tokens are counted in these, so that the three terms are of one magnitude
# The curves that are tried, as powers of n; plain ones first.
PREFILL = ((1,), (1, 0), (2, 1), (2, 1, 0))  # n prompt tokens
DECODE = ((0,), (1, 0))  # n streams
_FIT_AGAIN = 16  # observations; averages move slowly, a size that is new tells more
_BETTER = 0.9  # a curve of more terms must leave less than this share of the error


@dataclass(slots=True)
class _Bin:
    num_tokens: float
    step_s: float


@dataclass(slots=True)
class StepFit:
    """`curves`: those that are tried; the first one stands until something else is seen."""

    curves: Sequence[tuple[int, ...]] = PREFILL
    _bins: dict[int, _Bin] = field(default_factory=dict)
    _terms: dict[int, float] = field(default_factory=dict)  # of the curve, by power of n
    _num_new: int = 0  # observations since the curve was found

    def observe(self, num_tokens: int, step_s: float) -> None:
        """Learns from one step of `num_tokens`, or streams, that took `step_s`."""
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

    def coefficient(self, power: int) -> float:
        """Of the curve through what was seen, that of n^`power`; 0 before anything was."""
        if not self._bins:
            return 0.0
        if not self._terms or self._num_new >= _FIT_AGAIN:
            self._terms, self._num_new = self._best_curve(), 0
        return self._terms.get(power, 0.0) / _SCALE**power

    def prefill_cost(self, step_tokens: int) -> PrefillCost | None:
        """As what prompts cost in steps of `step_tokens`; None before anything was seen."""
        if not self._bins:
            return None
        return PrefillCost(
            self.coefficient(2), self.coefficient(1), self.coefficient(0), step_tokens
        )

    def _best_curve(self) -> dict[int, float]:
        """The first one is always among them: it has one term."""
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
        for powers in self.curves:
            if len(powers) > len(sizes):
                return
            rows = [[n**power / t for power in powers] for n, t in zip(sizes, times, strict=True)]
            solution = least_squares(rows)
            if solution is not None and min(solution) >= 0:
                error = sum((dot(row, solution) - 1.0) ** 2 for row in rows)
                yield error, dict(zip(powers, solution, strict=True))
