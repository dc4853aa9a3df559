"""What the runs of two engines amount to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from baton.bench.statistics import median, pairwise_ratio
from baton.errors import Internal


class Step(NamedTuple):
    """An engine step's end, and how many tokens it drew."""

    at_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One batch from prompts to last tokens."""

    start_s: float
    end_s: float
    steps: Sequence[Step]

    @property
    def num_tokens(self) -> int:
        return sum(step.num_tokens for step in self.steps)

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the whole run, prompts included."""
        return self.num_tokens / (self.end_s - self.start_s)

    def decode_tokens_per_s(self, batch: int) -> float:
        """Over the steps that follow a step of the whole batch and draw for all of it: no prompt is
        computed there, and nobody has ended."""
        full = [
            here.at_s - before.at_s
            for before, here in pairwise(self.steps)
            if before.num_tokens == here.num_tokens == batch
        ]
        if not full:
            raise Internal(f"no step drew {batch} tokens: the run is too short for the batch")
        return batch * len(full) / sum(full)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both sides of one comparison, and the machine's limits beside them."""

    baton: Run
    transformers: Run
    read_rate: float
    gemm_rate: float


def row(
    shape: str, batch: int, threads: int, pairs: Sequence[Pair], weight_bytes: int
) -> dict[str, Any]:
    """One line of the result. `weight_bytes`: what a step reads of weights. Rates are of decode; those
    with the prompts are beside them."""
    ours = [pair.baton.decode_tokens_per_s(batch) for pair in pairs]
    theirs = [pair.transformers.decode_tokens_per_s(batch) for pair in pairs]
    whole_ours = [pair.baton.tokens_per_s for pair in pairs]
    whole_theirs = [pair.transformers.tokens_per_s for pair in pairs]
    ratio, whole = pairwise_ratio(ours, theirs), pairwise_ratio(whole_ours, whole_theirs)
    weight_rates = [rate / batch * weight_bytes for rate in ours]
    share = pairwise_ratio(weight_rates, [pair.read_rate for pair in pairs])
    return {
        "shape": shape,
        "batch": batch,
        "threads": threads,
        "baton_tokens_per_s": median(ours),
        "transformers_tokens_per_s": median(theirs),
        "ratio": ratio.median,
        "ci95": ratio.ci95,
        "n": ratio.n,
        "with_prompts": {
            "baton_tokens_per_s": median(whole_ours),
            "transformers_tokens_per_s": median(whole_theirs),
            "ratio": whole.median,
            "ci95": whole.ci95,
        },
        "weight_bytes_per_step": weight_bytes,
        "weight_gb_per_s": median(weight_rates) / 1e9,
        "read_gb_per_s": median([pair.read_rate for pair in pairs]) / 1e9,
        "share_of_read": share.median,
        "share_ci95": share.ci95,
        "gemm_gflop_per_s": median([pair.gemm_rate for pair in pairs]) / 1e9,
    }
