"""How long a step will take, learned from the steps that were. Pure: durations are arguments.

A step's time is modelled as decode_step_s + num_prefill_tokens / prefill_tokens_per_s. Both terms are
running estimates; a single outlier (a page fault, a noisy neighbour) moves them by a bounded factor. What
a router predicts by is finer: `prefill_cost`, the curve of a step over its prefill tokens, and
`decode_stream_s`, what a stream more adds to a decode step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.prefill_cost import PrefillCost
from baton.scheduling.step_fit import DECODE, StepFit

_WEIGHT = 0.2  # of a new observation
_MAX_FACTOR = 2.0  # by which one observation may differ from the estimate before it is clipped
# Smaller prefill chunks say little about long prompts: overhead slows them, short contexts speed them up.
_MIN_TOKENS = 96
_FIRST_CHUNK = 128  # harmless while nothing is known, and large enough to learn from


@dataclass(slots=True)
class StepTimeModel:
    """0 means not yet observed."""

    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    step_tokens: int = (
        _FIRST_CHUNK  # the largest prefill that is planned in one step, as last asked
    )
    _prefill: StepFit = field(default_factory=StepFit)
    _decode: StepFit = field(default_factory=lambda: StepFit(DECODE))

    @property
    def prefill_cost(self) -> PrefillCost | None:
        """What prompts cost here, finer than by one rate; None before the first."""
        return self._prefill.prefill_cost(self.step_tokens)

    @property
    def decode_stream_s(self) -> float:
        """0 until steps with several numbers of streams were seen, or where they take equally long."""
        return self._decode.coefficient(1)

    def observe(self, num_prefill_tokens: int, num_decode_tokens: int, elapsed_s: float) -> None:
        """Learns from one finished step."""
        if num_prefill_tokens == 0:
            if num_decode_tokens:
                self.decode_step_s = _blend(self.decode_step_s, elapsed_s)
                self._decode.observe(num_decode_tokens, elapsed_s)
            return
        decode_s = min(self.decode_step_s, elapsed_s / 2) if num_decode_tokens else 0.0
        self._prefill.observe(num_prefill_tokens, elapsed_s - decode_s)
        if num_prefill_tokens >= _MIN_TOKENS and elapsed_s > 0:
            rate = num_prefill_tokens / (elapsed_s - decode_s)
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, rate)

    def chunk_budget(
        self, max_step_s: float, num_decode_tokens: int, *, smallest: int, largest: int
    ) -> int:
        """Prefill tokens that fit in a step of `max_step_s` beside the decodes, within the bounds."""
        self.step_tokens = self._chunk_budget(max_step_s, num_decode_tokens, smallest, largest)
        return self.step_tokens

    def _chunk_budget(
        self, max_step_s: float, num_decode_tokens: int, smallest: int, largest: int
    ) -> int:
        if not self.prefill_tokens_per_s:
            return max(smallest, min(largest, _FIRST_CHUNK))
        decode_s = self.decode_step_s if num_decode_tokens else 0.0
        budget = int((max_step_s - decode_s) * self.prefill_tokens_per_s)
        if budget > 64:
            budget -= budget % 32  # GEMM kernels work in tiles of rows
        return max(smallest, min(largest, budget))


def _blend(estimate: float, observed: float) -> float:
    if not estimate:
        return observed
    clipped = min(max(observed, estimate / _MAX_FACTOR), estimate * _MAX_FACTOR)
    return estimate + _WEIGHT * (clipped - estimate)
