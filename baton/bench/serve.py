"""Load on a server that runs: the settings of one run, from workload to result."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baton.bench import load, workload
from baton.bench.grpc_target import GrpcTarget
from baton.bench.openai_target import OpenAiTarget
from baton.bench.outcome import Outcome, Slo, report
from baton.bench.target import ServerSettings, Target
from baton.bench.traces import read_trace
from baton.bench.workload import Lengths, PlannedRequest

DEFAULT_NUM_REQUESTS = 64
DEFAULT_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """`num_requests`: None the whole trace, or 64. When they arrive: at random, `rate` a second on
    average; else as in the trace; else a new one whenever fewer than `concurrency` are in flight.
    `max_model_len`: longer requests are shortened to it; None what the server tells, if it does.
    """

    num_requests: int | None = None
    concurrency: int | None = None
    rate: float | None = None
    prompt_tokens: Lengths = field(default_factory=lambda: Lengths(128, 128))
    output_tokens: Lengths = field(default_factory=lambda: Lengths(64, 64))
    trace: Path | None = None
    speedup: float = 1.0
    num_warmup: int = 2
    max_model_len: int | None = None
    timeout_s: float | None = None
    seed: int = 0
    slo: Slo = field(default_factory=Slo)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run tells while it goes: how many requests it has, then every end of one."""

    on_start: Callable[[int], None]
    on_end: Callable[[Outcome], None]


async def measure(
    server: ServerSettings, settings: LoadSettings, progress: Progress
) -> dict[str, Any]:
    """Warms up, runs, reports. Raises the error of a failed warm-up, so that a run against a wrong
    address or model ends at once."""
    planned = plan(settings)
    target = await _connect(server, settings.seed)
    try:
        max_model_len = settings.max_model_len or target.max_model_len
        requests = workload.fitted(planned, max_model_len) if max_model_len else planned
        await _warm_up(target, requests, settings.num_warmup)
        progress.on_start(len(requests))
        outcomes = await load.run(
            target,
            requests,
            concurrency=_concurrency(settings),
            timeout_s=settings.timeout_s,
            on_end=progress.on_end,
        )
    finally:
        await target.close()
    return {
        **report(outcomes, settings.slo),
        "protocol": server.protocol,
        "model": target.model,
        "seed": settings.seed,
        "shortened": sum(map(operator.ne, requests, planned)),
    }


def plan(settings: LoadSettings) -> list[PlannedRequest]:
    """The run's requests, before they are fitted to the model."""
    if settings.trace is not None:
        traced = read_trace(settings.trace, limit=settings.num_requests)
        requests = workload.sped_up(traced, settings.speedup)
    else:
        requests = workload.synthetic(
            settings.num_requests or DEFAULT_NUM_REQUESTS,
            settings.prompt_tokens,
            settings.output_tokens,
            seed=settings.seed,
        )
    if settings.rate is not None:
        requests = workload.poisson(requests, settings.rate, seed=settings.seed)
    return requests


def _concurrency(settings: LoadSettings) -> int | None:
    """Without a limit of its own, only a closed loop needs one."""
    is_closed_loop = settings.rate is None and settings.trace is None
    return settings.concurrency or (DEFAULT_CONCURRENCY if is_closed_loop else None)


async def _connect(server: ServerSettings, seed: int) -> Target:
    if server.protocol == "grpc":
        return await GrpcTarget.connect(server, seed)
    return await OpenAiTarget.connect(server, seed)


async def _warm_up(target: Target, requests: Sequence[PlannedRequest], num_requests: int) -> None:
    """Like the run's first requests, with prompts of their own: the run shall not find them
    cached."""
    warm = [
        replace(request, index=-1 - request.index, due_s=None, block_hashes=())
        for request in requests[:num_requests]
    ]
    for outcome in await load.run(target, warm, concurrency=None):
        if outcome.error is not None:
            raise outcome.error
