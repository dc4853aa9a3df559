"""One streamed request as its client sees it: when its tokens came, and what the server says of it.

Knows nothing of what a run wants to find out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from baton import AsyncClient
from baton.bench.outcome import Arrival
from baton.errors import Internal
from baton.types import Timeline


class Gap(NamedTuple):
    """From one token to the next: when it began, and how long it was."""

    begin_s: float
    gap_s: float


@dataclass(slots=True)
class Observed:
    """`arrivals` grows while the request runs, `begun` is set with the first; `timeline` is there once
    it has ended."""

    start_s: float = 0.0
    arrivals: list[Arrival] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    timeline: Timeline | None = None

    async def run(self, client: AsyncClient, prompt: Sequence[int], max_tokens: int) -> None:
        """Sends `prompt` and reads to the end. Raises the request's typed error."""
        self.start_s = time.perf_counter()
        stream = client.stream(prompt, max_tokens=max_tokens, ignore_eos=True)
        async with stream:
            while deltas := await stream.receive():
                if num_tokens := sum(len(delta.token_ids) for delta in deltas):
                    self.arrivals.append(Arrival(time.perf_counter(), num_tokens))
                    self.begun.set()
        self.timeline = stream.timeline

    @property
    def ttft_s(self) -> float:
        if not self.arrivals:
            raise Internal("a request ended without a token")
        return self.arrivals[0].at_s - self.start_s

    @property
    def num_tokens(self) -> int:
        return sum(arrival.num_tokens for arrival in self.arrivals)

    def gaps(self) -> Iterator[Gap]:
        """One per token after those of the first message; those of a message share its gap evenly."""
        for before, here in pairwise(self.arrivals):
            gap_s = (here.at_s - before.at_s) / here.num_tokens
            for index in range(here.num_tokens):
                yield Gap(before.at_s + index * gap_s, gap_s)


async def observe(client: AsyncClient, prompt: Sequence[int], max_tokens: int) -> Observed:
    observed = Observed()
    await observed.run(client, prompt, max_tokens)
    return observed
