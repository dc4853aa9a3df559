"""What became of the requests of a run, and the figures that follow. Pure.

Times are those at the client. TTFT runs from the instant a request was due (or sent, where it had
no due time) to its first token: a load generator that falls behind must not flatter the server. ITL
is one value per token after those of the first message: where a message carries k tokens, the time
since the message before it is divided evenly into k values. (Tokens beyond the first in the first
message have no gap that could be observed; they count for throughput alone.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from baton.bench.statistics import summarize
from baton.errors import BatonError
from baton.types import Usage


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`usage`: what the server says it counted, None where it did not."""

    start_s: float
    end_s: float
    arrivals: tuple[Arrival, ...] = ()
    usage: Usage | None = None
    error: BatonError | None = None

    @property
    def ttft_s(self) -> float | None:
        return self.arrivals[0].at_s - self.start_s if self.arrivals else None

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def num_output_tokens(self) -> int:
        if self.usage is not None:
            return self.usage.num_output_tokens
        return sum(arrival.num_tokens for arrival in self.arrivals)

    def gaps_s(self) -> list[float]:
        return [
            (here.at_s - before.at_s) / here.num_tokens
            for before, here in pairwise(self.arrivals)
            for _ in range(here.num_tokens)
        ]


@dataclass(frozen=True, slots=True)
class Slo:
    """What a good request keeps: its TTFT, and the mean of its inter-token gaps. None: no bound."""

    ttft_s: float | None = None
    itl_s: float | None = None

    def is_kept_by(self, outcome: Outcome) -> bool:
        if outcome.error is not None:
            return False
        if self.ttft_s is not None and (outcome.ttft_s is None or outcome.ttft_s > self.ttft_s):
            return False
        gaps_s = outcome.gaps_s()
        return self.itl_s is None or not gaps_s or sum(gaps_s) / len(gaps_s) <= self.itl_s


def report(outcomes: Sequence[Outcome], slo: Slo) -> dict[str, Any]:
    """The result of a run, under the stable keys of `baton bench serve --json`.

    `requests` counts all, `errors` those of them that failed; latencies and throughputs are of the
    others. A distribution without values is empty.
    """
    done = [outcome for outcome in outcomes if outcome.error is None]
    duration_s = _duration_s(outcomes)
    num_output_tokens = sum(outcome.num_output_tokens for outcome in done)
    ttfts_s = [outcome.ttft_s for outcome in done if outcome.ttft_s is not None]
    result = {
        "requests": len(outcomes),
        "errors": len(outcomes) - len(done),
        "ttft_ms": _ms(ttfts_s),
        "itl_ms": _ms([gap_s for outcome in done for gap_s in outcome.gaps_s()]),
        "e2e_ms": _ms([outcome.e2e_s for outcome in done]),
        "output_tokens_per_s": num_output_tokens / duration_s,
        "goodput_requests_per_s": sum(map(slo.is_kept_by, done)) / duration_s,
        "requests_per_s": len(done) / duration_s,
        "duration_s": duration_s,
        "output_tokens": num_output_tokens,
        "tokens_per_message": _tokens_per_message(done),
    }
    return result | _prompt_figures(done, duration_s) | _errors(outcomes)


def _duration_s(outcomes: Sequence[Outcome]) -> float:
    start_s = min(outcome.start_s for outcome in outcomes)
    return max(1e-9, max(outcome.end_s for outcome in outcomes) - start_s)


def _ms(values_s: Sequence[float]) -> dict[str, float]:
    return {name: 1000 * value for name, value in summarize(values_s).items()}


def _tokens_per_message(done: Sequence[Outcome]) -> float | None:
    num_messages = sum(len(outcome.arrivals) for outcome in done)
    num_tokens = sum(outcome.num_output_tokens for outcome in done)
    return num_tokens / num_messages if num_messages else None


def _prompt_figures(done: Sequence[Outcome], duration_s: float) -> dict[str, Any]:
    """Absent where the server says nothing of its prompts."""
    usages = [outcome.usage for outcome in done if outcome.usage is not None]
    if not usages:
        return {}
    num_tokens = sum(usage.num_prompt_tokens for usage in usages)
    return {
        "prompt_tokens": num_tokens,
        "cached_prompt_tokens": sum(usage.num_cached_tokens for usage in usages),
        "prompt_tokens_per_s": num_tokens / duration_s,
    }


def _errors(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    first = f"{errors[0].code}: {errors[0]}" if errors else None
    return {"errors_by_code": dict(Counter(e.code for e in errors)), "first_error": first}
