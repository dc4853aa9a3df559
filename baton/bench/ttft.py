"""Time to first token, disaggregated against aggregated: what a hand-off costs an idle cluster.

    aggregated      a decode worker with one core prefills for itself
    disaggregated   a prefill worker with the same core hands the KV to a decode worker on another

Both clusters run side by side and take turns, so that every prompt is computed on the same core with nobody
beside it. Prompts are fresh
random tokens: nothing is found in a cache. Where the router finds a hand-off not worth its cost, the
disaggregated cluster prefills on its decode worker; that is part of what is measured, and told.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from typing import Any

from baton import AsyncClient
from baton.bench import arrangements
from baton.bench.observed import Observed, observe
from baton.bench.rounds import OnStep, RoundLimits, Steps, rounds
from baton.bench.statistics import median, pairwise_difference, pairwise_ratio
from baton.errors import ConfigError, Internal

# Of prompts from so many tokens on, at least this part must have been prefilled remotely: otherwise there
# is nothing to measure. (Not all: the router compares two cores of one speed by rates that it measured, and
# where somebody else computes on the prefill worker's core, it is right to pass it over.)
REMOTE_FROM_TOKENS = 512
LEAST_REMOTE = 0.5

_NUM_OUTPUT_TOKENS = 16
_LEAST_ROUNDS = 5
_TOKENS_PER_ROUND = 96  # of a short prompt, which is sent several times a round
_PAUSE_S = 0.05  # for confirmations and heartbeats of the request before
# Rates are learned from what ran: until then the router would compare guesses.
_WARM_UP_TOKENS = (512, 512, 512, 32, 512, 32)
_WARM_UP_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class TtftSettings:
    """Every round sends a pair of every length, of very short ones a few. No round begins that would
    not end within `time_limit_s` of the start, once there are five."""

    model: str = "llama-125m"
    prompts: tuple[int, ...] = (32, 512, 2048)
    num_rounds: int = 15
    time_limit_s: float = 200.0
    seed: int = 0

    def schedule(self) -> list[int]:
        """The lengths of one round's pairs."""
        return [n for n in self.prompts for _ in range(max(1, _TOKENS_PER_ROUND // n))]


@dataclass(frozen=True, slots=True)
class Sent:
    """What one request showed. `first_gap_s`: from the first token to the second. `prefill_worker`:
    empty where the decode worker prefilled."""

    ttft_s: float
    first_gap_s: float
    later_gaps_s: tuple[float, ...]
    prefill_worker: str = ""
    num_bytes: int = 0
    transfer_exposed_s: float = 0.0
    predicted_local_s: float = 0.0
    predicted_remote_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    aggregated: Sent
    disaggregated: Sent


def measure(settings: TtftSettings, on_step: OnStep) -> dict[str, Any]:
    """Starts what it needs, and ends it."""
    if not settings.prompts or min(settings.prompts) < 1:
        raise ConfigError("must be lengths of at least 1", field="prompts")
    started_s = time.monotonic()
    limits = RoundLimits(_LEAST_ROUNDS, settings.num_rounds, started_s + settings.time_limit_s)
    cores = arrangements.two_cores()
    with ExitStack() as clusters:
        one = clusters.enter_context(
            arrangements.started(settings.model, arrangements.aggregated(cores.prefill))
        )
        two = clusters.enter_context(
            arrangements.started(settings.model, arrangements.disaggregated(cores))
        )
        pairs = asyncio.run(_pairs(settings, limits, (one.address, two.address), on_step))
    return {
        "rows": [row(num_tokens, pairs[num_tokens]) for num_tokens in settings.prompts],
        "model": settings.model,
        "prefill_core": cores.prefill,
        "decode_core": cores.decode,
        "duration_s": time.monotonic() - started_s,
    }


async def _pairs(
    settings: TtftSettings, limits: RoundLimits, addresses: tuple[str, str], on_step: OnStep
) -> dict[int, list[Pair]]:
    """By length of prompt."""
    rng = random.Random(settings.seed)
    schedule = settings.schedule()
    steps = Steps(len(_WARM_UP_TOKENS) + settings.num_rounds * len(schedule), on_step)
    found: dict[int, list[Pair]] = {num_tokens: [] for num_tokens in settings.prompts}
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(AsyncClient(each)) for each in addresses]
        [model] = await one.models()

        async def pair(num_tokens: int) -> Pair:
            prompt = [rng.randrange(model.vocab_size) for _ in range(num_tokens)]
            return Pair(await _send(one, prompt), await _send(two, prompt))

        for num_tokens in _WARM_UP_TOKENS:
            await pair(num_tokens)
            await asyncio.sleep(_WARM_UP_PAUSE_S)
            steps.end("warming up")
        for _ in rounds(limits):
            for num_tokens in schedule:
                found[num_tokens].append(await pair(num_tokens))
                steps.end(f"{num_tokens:,} tokens")
    return found


async def _send(client: AsyncClient, prompt: Sequence[int]) -> Sent:
    observed = await observe(client, prompt, _NUM_OUTPUT_TOKENS)
    await asyncio.sleep(_PAUSE_S)
    return sent(observed)


def sent(observed: Observed) -> Sent:
    """A message that carries the first token with others leaves no gap to see: it counts as 0."""
    timeline = observed.timeline
    if timeline is None:
        raise Internal("a request ended without its timeline")
    gaps_s = [gap.gap_s for gap in observed.gaps()]
    together = observed.arrivals[0].num_tokens - 1
    gaps_s = [*[0.0] * together, *gaps_s]
    hand_off = timeline.hand_off
    return Sent(
        ttft_s=observed.ttft_s,
        first_gap_s=gaps_s[0],
        later_gaps_s=tuple(gaps_s[1:]),
        prefill_worker=hand_off.prefill_worker if hand_off else "",
        num_bytes=hand_off.transfer_bytes if hand_off else 0,
        transfer_exposed_s=hand_off.transfer_exposed_s if hand_off else 0.0,
        predicted_local_s=timeline.predicted_local_ttft_s or 0.0,
        predicted_remote_s=timeline.predicted_remote_ttft_s or 0.0,
    )


def row(num_tokens: int, pairs: Sequence[Pair]) -> dict[str, Any]:
    """One line of the result. TTFTs are of all pairs, however the router sent them; what is said of the
    hand-off is of those that had one, or of all where none had."""
    remote = [pair for pair in pairs if pair.disaggregated.prefill_worker]
    if num_tokens >= REMOTE_FROM_TOKENS and len(remote) < LEAST_REMOTE * len(pairs):
        raise Internal(
            f"{len(pairs) - len(remote)} of {len(pairs)} prompts of {num_tokens} tokens were "
            "prefilled by the decode worker: there is no hand-off to measure"
        )
    ours = [pair.disaggregated for pair in pairs]
    theirs = [pair.aggregated for pair in pairs]
    ratio = pairwise_ratio([s.ttft_s for s in ours], [s.ttft_s for s in theirs])
    return {
        "prompt_tokens": num_tokens,
        "aggregated_ms": 1000 * median([each.ttft_s for each in theirs]),
        "disaggregated_ms": 1000 * median([each.ttft_s for each in ours]),
        "ratio": ratio.median,
        "ci95": ratio.ci95,
        "n": ratio.n,
        **_hand_off(remote or pairs),
        "prefill_worker": _workers(ours),
        "num_remote": len(remote),
        "decode_step_ms": 1000 * median([gap for each in theirs for gap in each.later_gaps_s]),
        "predicted_local_ms": 1000 * median([each.predicted_local_s for each in ours]),
        "predicted_remote_ms": 1000 * median([each.predicted_remote_s for each in ours]),
    }


def _hand_off(pairs: Sequence[Pair]) -> dict[str, Any]:
    """`exposed_ms`: the first gap between tokens, less that of the aggregated worker."""
    ours = [pair.disaggregated for pair in pairs]
    theirs = [pair.aggregated.first_gap_s for pair in pairs]
    exposed = pairwise_difference([each.first_gap_s for each in ours], theirs)
    return {
        "exposed_ms": 1000 * exposed.median,
        "exposed_ci95_ms": [1000 * end for end in exposed.ci95],
        "bytes_moved": round(median([each.num_bytes for each in ours])),
        "transfer_exposed_ms": 1000 * median([each.transfer_exposed_s for each in ours]),
    }


def _workers(sents: Sequence[Sent]) -> str:
    """Who prefilled, by name; "decode worker" where it was the decode worker itself."""
    return ", ".join(sorted({each.prefill_worker or "decode worker" for each in sents}))
