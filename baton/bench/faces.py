"""Time to first text by face: of one idle worker over gRPC, and over HTTP beside it.

    grpc    the SDK
    http    what `baton bench serve --protocol openai` sends and times
    plain   `baton.bench.plain_http`, which shares no code with either: what `http` says must be what it says

They take turns at the same router, each over a connection that it keeps, with prompts of random words that
nobody has sent before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from baton import AsyncClient
from baton.bench import arrangements, load
from baton.bench.openai_target import OpenAiTarget
from baton.bench.rounds import OnStep, RoundLimits, Steps, rounds
from baton.bench.statistics import median, pairwise_difference, pairwise_ratio
from baton.bench.target import ServerSettings
from baton.bench.workload import PlannedRequest, prompt_text
from baton.cluster.local import LocalCluster
from baton.errors import ConfigError, Internal

WAYS = ("grpc", "http", "plain")

_NUM_OUTPUT_TOKENS = 16
_LEAST_ROUNDS = 5
_NUM_WARM_UP_ROUNDS = 3
_PAUSE_S = 0.05  # for what the request before leaves to be done

# The seconds until the first text of one more request of so many words.
Send = Callable[[PlannedRequest], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class FacesSettings:
    """`prompts`: lengths in words. A round sends every length in every way."""

    model: str = "demo/model"
    prompts: tuple[int, ...] = (8, 128)
    num_rounds: int = 31
    time_limit_s: float = 200.0
    seed: int = 0


def measure(settings: FacesSettings, on_step: OnStep) -> dict[str, Any]:
    """Starts what it needs, and ends it."""
    if not settings.prompts or min(settings.prompts) < 1:
        raise ConfigError("must be lengths of at least 1", field="prompts")
    started_s = time.monotonic()
    limits = RoundLimits(_LEAST_ROUNDS, settings.num_rounds, started_s + settings.time_limit_s)
    core = arrangements.two_cores().decode
    with arrangements.started(settings.model, arrangements.aggregated(core)) as cluster:
        found = asyncio.run(_measure(settings, limits, cluster, on_step))
    return {
        "rows": [row(num_words, found[num_words]) for num_words in settings.prompts],
        "model": settings.model,
        "duration_s": time.monotonic() - started_s,
    }


async def _measure(
    settings: FacesSettings, limits: RoundLimits, cluster: LocalCluster, on_step: OnStep
) -> dict[int, dict[str, list[float]]]:
    """By number of words and way: TTFTs in seconds, one per round."""
    num_steps = (_NUM_WARM_UP_ROUNDS + settings.num_rounds) * len(settings.prompts)
    steps = Steps(num_steps, on_step)
    found = {words: {way: list[float]() for way in WAYS} for words in settings.prompts}
    numbers = count()
    async with _ways(cluster, settings.seed) as ways:

        async def turn(first: int, num_words: int) -> dict[str, float]:
            taken: dict[str, float] = {}
            for way in (*WAYS[first:], *WAYS[:first]):
                request = PlannedRequest(next(numbers), num_words, _NUM_OUTPUT_TOKENS)
                taken[way] = await ways[way](request)
                await asyncio.sleep(_PAUSE_S)
            return taken

        for _ in range(_NUM_WARM_UP_ROUNDS):
            for num_words in settings.prompts:
                await turn(0, num_words)
                steps.end("warming up")
        for index in rounds(limits):
            for num_words in settings.prompts:
                for way, ttft_s in (await turn(index % len(WAYS), num_words)).items():
                    found[num_words][way].append(ttft_s)
                steps.end(f"{num_words:,} words")
    return found


@asynccontextmanager
async def _ways(cluster: LocalCluster, seed: int) -> AsyncIterator[dict[str, Send]]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(cluster.address))
        server = ServerSettings("openai", (), cluster.base_url)
        target = await OpenAiTarget.connect(server, seed)
        stack.push_async_callback(target.close)
        plain = await stack.enter_async_context(plain_http("127.0.0.1", cluster.http_port))

        async def over_grpc(request: PlannedRequest) -> float:
            return await _grpc_first_text_s(client, prompt_text(request, seed=seed))

        async def over_http(request: PlannedRequest) -> float:
            [outcome] = await load.run(target, [request], concurrency=None)
            if outcome.error is not None:
                raise outcome.error
            if outcome.ttft_s is None:
                raise Internal("a request ended without text")
            return outcome.ttft_s

        async def over_plain_http(request: PlannedRequest) -> float:
            return await plain(
                {
                    "prompt": prompt_text(request, seed=seed),
                    "max_tokens": request.num_output_tokens,
                    "stream": True,
                    "ignore_eos": True,
                }
            )

        yield {"grpc": over_grpc, "http": over_http, "plain": over_plain_http}


async def _grpc_first_text_s(client: AsyncClient, prompt: str) -> float:
    first_s: float | None = None
    sent_s = time.perf_counter()
    stream = client.stream(prompt, max_tokens=_NUM_OUTPUT_TOKENS, ignore_eos=True)
    async with stream:
        async for delta in stream:
            if first_s is None and delta.text:
                first_s = time.perf_counter() - sent_s
    if first_s is None:
        raise Internal("a request ended without text")
    return first_s


@asynccontextmanager
async def plain_http(
    host: str, port: int
) -> AsyncIterator[Callable[[dict[str, Any]], Awaitable[float]]]:
    """Sends bodies through `baton.bench.plain_http`, one at a time."""
    command = (sys.executable, "-m", "baton.bench.plain_http", host, str(port))
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    try:
        yield lambda body: _ask(process, body)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def _ask(process: Process, body: dict[str, Any]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(body).encode() + b"\n")
    if not (line := await process.stdout.readline()):
        raise Internal("the plain reader ended; standard error says why")
    return float(line)


def row(num_words: int, ttfts_s: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """`over`: HTTP over gRPC; `agreement`: the load generator over the plain reader."""
    over = pairwise_ratio(ttfts_s["http"], ttfts_s["grpc"])
    added = pairwise_difference(ttfts_s["http"], ttfts_s["grpc"])
    agreement = pairwise_ratio(ttfts_s["http"], ttfts_s["plain"])
    return {
        "prompt_words": num_words,
        **{f"{way}_ms": 1000 * median(ttfts_s[way]) for way in WAYS},
        "over": over.median,
        "over_ci95": over.ci95,
        "added_ms": 1000 * added.median,
        "added_ci95_ms": [1000 * end for end in added.ci95],
        "agreement": agreement.median,
        "agreement_ci95": agreement.ci95,
        "n": over.n,
    }
