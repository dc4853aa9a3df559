"""Replays a trace in simulated time: reads it, runs the simulator, and says how long that took."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.bench import synthetic
from baton.bench.data import data_file
from baton.bench.traces import read_trace
from baton.bench.workload import PlannedRequest
from baton.planner.arrival import Arrival, block_ids
from baton.planner.report import ReplayReport, report
from baton.planner.simulator import ClusterShape, Outcome, simulate


@dataclass(frozen=True, slots=True)
class Replay:
    outcome: Outcome
    report: ReplayReport
    wall_s: float


def find_trace(trace: Path, limit: int | None) -> list[PlannedRequest]:
    """A file as it is given, one of that name among the published data, or one that is made up by its
    name. Raises ConfigError."""
    if synthetic.is_name(str(trace)) and not trace.exists():
        return synthetic.named(str(trace), limit=limit)
    return read_trace(trace if trace.exists() else data_file(trace.name), limit=limit)


def arrivals(
    requests: Sequence[PlannedRequest], *, block_size: int, speedup: float
) -> list[Arrival]:
    """Raises ConfigError where the trace's blocks cannot be cut to `block_size`."""
    return [
        Arrival(
            (each.due_s or 0.0) / speedup,
            each.num_prompt_tokens,
            each.num_output_tokens,
            block_ids(
                each.block_hashes,
                each.block_size,
                each.num_prompt_tokens,
                block_size,
                unique=each.index,
            ),
        )
        for each in requests
    ]


def replay(shape: ClusterShape, trace: Sequence[Arrival]) -> Replay:
    """The collector of cycles is off meanwhile: what a run makes lives until its end anyway."""
    gc.collect()
    gc.disable()
    try:
        started_s = time.perf_counter()
        outcome = simulate(shape, trace)
        wall_s = time.perf_counter() - started_s
    finally:
        gc.enable()
    return Replay(outcome, report(outcome), wall_s)
