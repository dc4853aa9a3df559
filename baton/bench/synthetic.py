"""Arrivals that are made up, in the form of a trace: conversations that begin with one of a few shared heads
(system prompts, tools, documents) and come in bursts. Everything random comes from a seed.

`baton replay synthetic/KIND/SEED` takes them; kinds differ in lengths, sharing and burstiness.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

from baton.bench.traces import MOONCAKE_BLOCK_SIZE
from baton.bench.workload import PlannedRequest
from baton.errors import ConfigError

PREFIX = "synthetic"
NUM_REQUESTS = 4000

_BLOCK_SIZE = MOONCAKE_BLOCK_SIZE
_TOKENS_PER_S = (
    80_000.0  # of prompts, over the whole run: twice what comes in Mooncake's conversations
)
_MOST_TOKENS = 120_000  # of a prompt
_MOST_OUTPUT = 2000
_ROOM = 1 << 20  # for the blocks of one head or session among hashes


@dataclass(frozen=True, slots=True)
class Kind:
    """Lengths are medians of log-normal distributions of spread `sigma`. A session begins with one of
    `num_heads` heads, the n-th of which is asked for as often as 1 / n^`skew` says, and goes on for about
    `num_turns` turns, `think_s` apart, each of which adds the last answer and something new. Sessions
    begin in bursts of about `burst`."""

    num_heads: int
    head_tokens: int
    turn_tokens: int
    output_tokens: int
    num_turns: float
    think_s: float
    burst: float
    sigma: float = 1.0
    skew: float = 1.0


KINDS = {
    "chat": Kind(5, 800, 500, 250, num_turns=6, think_s=20, burst=1),
    "agents": Kind(12, 6000, 700, 120, num_turns=10, think_s=2, burst=4, sigma=0.8),
    "documents": Kind(400, 16_000, 150, 200, num_turns=2, think_s=15, burst=2, sigma=0.8, skew=0.6),
    "unshared": Kind(10**9, 1, 2500, 200, num_turns=1, think_s=1, burst=1, sigma=1.4, skew=0.0),
    "batches": Kind(3, 1000, 5000, 300, num_turns=3, think_s=30, burst=16, sigma=1.2),
}


def is_name(trace: str) -> bool:
    return trace.partition("/")[0] == PREFIX


def named(name: str, *, limit: int | None = None) -> list[PlannedRequest]:
    """Of a name as `synthetic/chat/7`, the first `limit` requests. Raises ConfigError."""
    _, kind, seed, *rest = (*name.split("/"), "", "")
    if kind not in KINDS or not seed.isdecimal() or any(rest):
        problem = f"must be {PREFIX}/KIND/SEED, where KIND is one of {', '.join(KINDS)}"
        raise ConfigError(problem, field=name)
    return generate(KINDS[kind], NUM_REQUESTS, seed=int(seed))[:limit]


def generate(kind: Kind, num_requests: int, *, seed: int) -> list[PlannedRequest]:
    """Sessions of `num_requests` turns in all, as they arrive."""
    draw = random.Random(f"{seed}/{kind}")
    sessions: list[list[_Turn]] = []
    num_left = num_requests
    while num_left > 0:
        turns = list(_session(kind, draw, len(sessions)))[:num_left]
        num_left -= len(turns)
        sessions.append(turns)
    num_tokens = sum(turn.num_prompt_tokens for turns in sessions for turn in turns)
    starts = _starts(kind, draw, len(sessions), num_tokens / _TOKENS_PER_S)
    arrivals = [
        (start_s + turn.after_s, number, turn)
        for number, (start_s, turns) in enumerate(zip(starts, sessions, strict=True))
        for turn in turns
    ]
    arrivals.sort()
    first_s = arrivals[0][0]
    return [
        PlannedRequest(
            index,
            turn.num_prompt_tokens,
            turn.num_output_tokens,
            at_s - first_s,
            turn.hashes,
            _BLOCK_SIZE,
        )
        for index, (at_s, _, turn) in enumerate(arrivals)
    ]


class _Turn(NamedTuple):
    """`after_s`: since its session began. `hashes`: of the prompt's full blocks."""

    after_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    hashes: tuple[int, ...]


def _session(kind: Kind, draw: random.Random, number: int) -> Iterator[_Turn]:
    """Each turn's prompt is the one before, its answer, and something new."""
    head = _head(kind, draw)
    num_tokens = num_head_tokens = _length(
        random.Random(f"{head}/{kind}"), kind.head_tokens, kind.sigma, _MOST_TOKENS // 2
    )
    after_s = 0.0
    for _ in range(_around(draw, kind.num_turns)):
        num_tokens += _length(draw, kind.turn_tokens, kind.sigma, _MOST_TOKENS)
        num_tokens = min(num_tokens, _MOST_TOKENS)
        num_output_tokens = _length(draw, kind.output_tokens, kind.sigma, _MOST_OUTPUT)
        num_shared = num_head_tokens // _BLOCK_SIZE
        hashes = tuple(
            index + _ROOM * (2 * head if index < num_shared else 2 * number + 1)
            for index in range(num_tokens // _BLOCK_SIZE)
        )
        yield _Turn(after_s, num_tokens, num_output_tokens, hashes)
        num_tokens += num_output_tokens
        after_s += draw.expovariate(1 / kind.think_s)


def _head(kind: Kind, draw: random.Random) -> int:
    """By its rank: rank r as often as r^-skew, drawn by the inverse of the distribution's integral."""
    if kind.skew == 1.0:
        return int(exp(draw.random() * log(kind.num_heads + 1))) - 1
    power = 1.0 - kind.skew
    most = (kind.num_heads + 1) ** power
    return int((1 + draw.random() * (most - 1)) ** (1 / power)) - 1


def _starts(kind: Kind, draw: random.Random, num: int, run_s: float) -> list[float]:
    """Bursts at random over the run, each of some sessions that begin at once."""
    starts: list[float] = []
    while len(starts) < num:
        starts += [draw.random() * run_s] * _around(draw, kind.burst)
    return starts[:num]


def _length(draw: random.Random, median: int, sigma: float, most: int) -> int:
    return max(1, min(most, round(draw.lognormvariate(log(median), sigma))))


def _around(draw: random.Random, mean: float) -> int:
    """At least 1; geometric."""
    num = 1
    while draw.random() > 1 / mean:
        num += 1
    return num
