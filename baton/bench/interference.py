"""What arriving prompts do to streams that decode: disaggregated and aggregated on the same two cores.

    disaggregated   a prefill worker with one core, a decode worker with the other
    aggregated      one decode worker with both, at the chunk budget that disturbs its streams least

An episode on one of them, which then rests while the other has its turn:

    streams begin | quiet ............ | loaded: a long prompt, and the next when it has ended ... |

Every prompt is sent as soon as the one before has its last token, so that each arrangement takes them as
fast as it can: the most that one client at a time can disturb. Prompts are fresh random tokens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from baton import AsyncClient
from baton.bench import arrangements
from baton.bench.arrangements import Arrangement
from baton.bench.interference_result import Episode, Prompt, Window, gaps_in, report, tokens_in
from baton.bench.observed import Observed, observe
from baton.bench.rounds import OnStep, RoundLimits, Steps, rounds
from baton.bench.statistics import percentile
from baton.errors import Internal

_NUM_STREAM_PROMPT_TOKENS = 64
_NUM_NEW_TOKENS = 4  # of an arriving prompt
_LEAST_ROUNDS = 3
_SETTLE_S = 0.3  # after the streams have begun, and between quiet and load
_SCREEN_QUIET_S, _SCREEN_LOADED_S = 0.5, 2.0
# Rates are learned from what ran: until then the router would compare guesses.
_WARM_UP_TOKENS = (256, 256, 256)
_WARM_UP_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class InterferenceSettings:
    """`chunk_budgets`: of the aggregated arrangement, tried first. A window ends with the prompt that
    is under way when `loaded_s` is over. `num_rounds`: pairs of episodes; none begins that would not end
    within `time_limit_s` of the start, once there are three."""

    model: str = "llama-125m"
    num_streams: int = 8
    num_prompt_tokens: int = 2048
    chunk_budgets: tuple[int, ...] = (32, 64, 128, 256)
    num_rounds: int = 6
    quiet_s: float = 3.0
    loaded_s: float = 5.0
    time_limit_s: float = 200.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Windows:
    quiet_s: float
    loaded_s: float


def measure(settings: InterferenceSettings, on_step: OnStep) -> dict[str, Any]:
    """Starts what it needs, and ends it."""
    started_s = time.monotonic()
    limits = RoundLimits(_LEAST_ROUNDS, settings.num_rounds, started_s + settings.time_limit_s)
    steps = Steps(1 + 2 * len(settings.chunk_budgets) + 2 * settings.num_rounds, on_step)
    cores = arrangements.two_cores()
    both = (cores.prefill, cores.decode)
    with ExitStack() as clusters:

        def start(arrangement: Arrangement) -> str:
            cluster = clusters.enter_context(arrangements.started(settings.model, arrangement))
            steps.end("starting")
            return cluster.address

        disaggregated = start(arrangements.disaggregated(cores))
        budgets = {
            budget: start(arrangements.aggregated(*both, max_chunk_tokens=budget))
            for budget in settings.chunk_budgets
        }
        result = asyncio.run(_Run(settings, limits, steps).both(disaggregated, budgets))
    return {
        **result,
        "model": settings.model,
        "num_streams": settings.num_streams,
        "num_prompt_tokens": settings.num_prompt_tokens,
        "duration_s": time.monotonic() - started_s,
    }


class _Run:
    def __init__(self, settings: InterferenceSettings, limits: RoundLimits, steps: Steps) -> None:
        self._settings = settings
        self._limits = limits
        self._steps = steps
        self._random = random.Random(settings.seed)
        self._windows = Windows(settings.quiet_s, settings.loaded_s)
        self._vocab_size = 0

    async def both(self, disaggregated: str, budgets: Mapping[int, str]) -> dict[str, Any]:
        async with AsyncClient(disaggregated) as client:
            [model] = await client.models()
            self._vocab_size = model.vocab_size
            await self._warm_up(client)
            screened = {budget: await self._screen(budgets[budget]) for budget in budgets}
            budget = min(screened, key=lambda each: screened[each])
            one: list[Episode] = []
            two: list[Episode] = []
            async with AsyncClient(budgets[budget]) as other:
                for _ in rounds(self._limits):
                    one.append(await self._episode(client, self._windows, "disaggregated"))
                    two.append(await self._episode(other, self._windows, "aggregated"))
        return {
            "disaggregated": report(one),
            "aggregated": {**report(two), "chunk_budget": budget, "screened_p99_ms": screened},
        }

    async def _warm_up(self, client: AsyncClient) -> None:
        for num_tokens in _WARM_UP_TOKENS:
            await observe(client, self._prompt(num_tokens), _NUM_NEW_TOKENS)
            await asyncio.sleep(_WARM_UP_PAUSE_S)

    async def _screen(self, address: str) -> float:
        """The loaded P99 of a short episode, in milliseconds."""
        windows = Windows(_SCREEN_QUIET_S, _SCREEN_LOADED_S)
        async with AsyncClient(address) as client:
            await self._warm_up(client)
            episode = await self._episode(client, windows, "chunk budgets")
        return 1000 * percentile(episode.loaded_gaps_s, 99)

    async def _episode(self, client: AsyncClient, windows: Windows, name: str) -> Episode:
        async with self._streams(client) as streams:
            quiet = Window(time.perf_counter(), time.perf_counter() + windows.quiet_s)
            await asyncio.sleep(windows.quiet_s + _SETTLE_S)
            begin_s = time.perf_counter()
            prompts: list[Prompt] = []
            while not prompts or time.perf_counter() < begin_s + windows.loaded_s:
                prompts.append(await self._send(client))
            loaded = Window(begin_s, time.perf_counter())
        arrivals = [stream.arrivals for stream in streams]
        self._steps.end(name)
        return Episode(
            quiet_gaps_s=gaps_in(quiet, streams),
            loaded_gaps_s=gaps_in(loaded, streams),
            loaded_s=loaded.end_s - loaded.begin_s,
            num_stream_tokens=tokens_in(loaded, arrivals),
            prompts=tuple(prompts),
        )

    async def _send(self, client: AsyncClient) -> Prompt:
        num_tokens = self._settings.num_prompt_tokens
        observed = await observe(client, self._prompt(num_tokens), _NUM_NEW_TOKENS)
        if observed.timeline is None:
            raise Internal("a request ended without its timeline")
        hand_off = observed.timeline.hand_off
        num_bytes = hand_off.transfer_bytes if hand_off else 0
        return Prompt(observed.ttft_s, num_tokens, observed.num_tokens, num_bytes)

    @asynccontextmanager
    async def _streams(self, client: AsyncClient) -> AsyncIterator[Sequence[Observed]]:
        """Streams that have all begun, and are cancelled in the end. Raises where one ends early."""
        [model] = await client.models()
        longest = model.max_model_len - _NUM_STREAM_PROMPT_TOKENS
        streams = [Observed() for _ in range(self._settings.num_streams)]
        tasks = [
            asyncio.create_task(each.run(client, self._prompt(_NUM_STREAM_PROMPT_TOKENS), longest))
            for each in streams
        ]
        begun = asyncio.gather(*(each.begun.wait() for each in streams))
        waiting: list[asyncio.Future[Any]] = [begun, *tasks]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            _check_none_ended(tasks)
            await asyncio.sleep(_SETTLE_S)
            yield streams
            _check_none_ended(tasks)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _prompt(self, num_tokens: int) -> list[int]:
        return [self._random.randrange(self._vocab_size) for _ in range(num_tokens)]


def _check_none_ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raises what ended a stream, if one has ended."""
    for task in tasks:
        if task.done():
            task.result()
            raise Internal(
                "a stream reached the model's longest context in the middle of an episode"
            )
