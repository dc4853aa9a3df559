"""What the episodes of an interference run amount to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from baton.bench.observed import Observed
from baton.bench.outcome import Arrival
from baton.bench.statistics import median, pairwise_ratio, percentile, summarize
from baton.errors import Internal


@dataclass(frozen=True, slots=True)
class Window:
    """Half-open, on the clock of the arrivals."""

    begin_s: float
    end_s: float

    def __contains__(self, at_s: float) -> bool:
        return self.begin_s <= at_s < self.end_s


@dataclass(frozen=True, slots=True)
class Prompt:
    """An arriving prompt that has ended. `num_bytes`: of KV handed over, 0 where nothing was."""

    ttft_s: float
    num_tokens: int
    num_new_tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Episode:
    """Gaps are those of the streams; `num_stream_tokens` theirs while it was loaded."""

    quiet_gaps_s: Sequence[float]
    loaded_gaps_s: Sequence[float]
    loaded_s: float
    num_stream_tokens: int
    prompts: Sequence[Prompt]


def gaps_in(window: Window, streams: Iterable[Observed]) -> list[float]:
    """A gap belongs to the window in which it begins: a long one at its end is not lost."""
    return [gap.gap_s for each in streams for gap in each.gaps() if gap.begin_s in window]


def tokens_in(window: Window, arrivals: Iterable[Iterable[Arrival]]) -> int:
    return sum(each.num_tokens for stream in arrivals for each in stream if each.at_s in window)


def report(episodes: Sequence[Episode]) -> dict[str, Any]:
    """One arrangement's part of the result. Percentiles are of the gaps of all episodes together;
    `ratio_p99` is the median of the episodes' own ratios, `ci95` its interval. Throughput counts
    prompt tokens and output tokens, of streams and of prompts, while it was loaded."""
    prompts = [prompt for episode in episodes for prompt in episode.prompts]
    quiet = [gap for episode in episodes for gap in episode.quiet_gaps_s]
    loaded = [gap for episode in episodes for gap in episode.loaded_gaps_s]
    if not all(e.quiet_gaps_s and e.loaded_gaps_s for e in episodes):
        raise Internal("an episode has no gap to measure: its windows are too short")
    ratio = pairwise_ratio(
        [percentile(each.loaded_gaps_s, 99) for each in episodes],
        [percentile(each.quiet_gaps_s, 99) for each in episodes],
    )
    loaded_s = sum(episode.loaded_s for episode in episodes)
    num_prompt_tokens = sum(prompt.num_tokens for prompt in prompts)
    num_output_tokens = sum(episode.num_stream_tokens for episode in episodes)
    num_output_tokens += sum(prompt.num_new_tokens for prompt in prompts)
    return {
        "itl_ms_quiet": _percentiles_ms(quiet),
        "itl_ms_loaded": _percentiles_ms(loaded),
        "ratio_p99": ratio.median,
        "ci95": ratio.ci95,
        "n": ratio.n,
        "transfers": sum(prompt.num_bytes > 0 for prompt in prompts),
        "prompts": len(prompts),
        "prompt_ttft_ms": 1000 * median([prompt.ttft_s for prompt in prompts]),
        "tokens_per_s": (num_prompt_tokens + num_output_tokens) / loaded_s,
        "output_tokens_per_s": num_output_tokens / loaded_s,
        "num_gaps_quiet": len(quiet),
        "num_gaps_loaded": len(loaded),
        "loaded_s": loaded_s,
    }


def _percentiles_ms(gaps_s: Sequence[float]) -> dict[str, float]:
    found = summarize(gaps_s)
    return {name: 1000 * found[name] for name in ("p50", "p99")}
