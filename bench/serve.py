"""Load on a server that runs: the settings of one run, from workload to result."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from baton.errors import InvalidArgument
from bench import load, workload
from bench.grpc_target import GrpcTarget
from bench.openai_target import Api, OpenAiSettings, OpenAiTarget
from bench.outcome import Outcome, Slo, report
from bench.traces import read_trace
from bench.workload import Lengths, PlannedRequest


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the load goes. `model` may be empty where the server has one; with gRPC, `addresses`
    counts, with OpenAI `base_url`, `api` and `api_key`."""

    protocol: Literal["grpc", "openai"] = "grpc"
    addresses: tuple[str, ...] = ("127.0.0.1:50051",)
    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    api: Api = "completions"
    api_key: str = ""
    ignore_eos: bool = True


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """`rate`: random arrivals per second, None those of the trace, or without a trace a closed loop
    of `concurrency`. `max_model_len`: longer requests are shortened; None the model's, where the
    server tells it."""

    num_requests: int = 64
    concurrency: int | None = None
    rate: float | None = None
    prompt_tokens: Lengths = Lengths(128, 128)
    output_tokens: Lengths = Lengths(64, 64)
    trace: Path | None = None
    speedup: float = 1.0
    num_warmup: int = 2
    max_model_len: int | None = None
    timeout_s: float | None = None
    seed: int = 0
    slo: Slo = field(default_factory=Slo)


async def measure(
    server: ServerSettings, settings: LoadSettings, on_end: Callable[[Outcome], None]
) -> dict[str, Any]:
    """Warms up, runs, and reports. Raises what already the warm-up fails with: a run against the
    wrong address or model ends at once. `on_end` is told of every request."""
    requests = plan(settings)
    target, model, max_model_len = await _connect(server, settings.seed)
    async with aclosing(_Closing(target)):
        pass


def plan(settings: LoadSettings) -> list[PlannedRequest]:
    """The run's requests, before they are fitted to the model."""
    if settings.trace is not None:
        requests = read_trace(settings.trace, limit=settings.num_requests)
        requests = workload.sped_up(requests, settings.speedup)
    else:
        requests = workload.synthetic(
            settings.num_requests, settings.prompt_tokens, settings.output_tokens, seed=settings.seed
        )
    if settings.rate is not None:
        requests = workload.poisson(requests, settings.rate, seed=settings.seed)
    return requests
