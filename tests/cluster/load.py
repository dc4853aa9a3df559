"""Requests that keep coming while something dies, and every answer to them compared with the one that the
same request got undisturbed."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from baton import AsyncClient
from baton.client.results import Delta
from baton.types import Timeline
from tests.cluster.watching import eventually

RECOVERY_S = 30.0  # that a death may hold a stream up at most: a multiple of what it does


@dataclass
class Ask:
    """A request and its undisturbed answer."""

    prompt: list[int]
    options: dict[str, Any]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""


@dataclass
class Followed:
    """A request as its client saw it: when it was sent, when each delta came."""

    sent_s: float
    delta_s: list[float] = field(default_factory=list)
    num_continuations: int = 0
    timeline: Timeline | None = None

    def waited_s(self, since_s: float) -> float | None:
        """From `since_s` until it got its next token; None where it was not under way."""
        if not self.sent_s <= since_s:
            return None
        return next((at_s - since_s for at_s in self.delta_s if at_s >= since_s), None)


@dataclass
class Load:
    """`num_streams` clients, each of which asks again as soon as it has been answered."""

    client: AsyncClient
    asks: Sequence[Ask]
    num_streams: int = 6
    followed: list[Followed] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        """Under load; at the end what has been asked is waited for."""
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(self.num_streams):
                group.create_task(self._ask_on(random.Random(number), stopping))
            yield self
            stopping.set()

    async def progress(self, num_deltas: int) -> None:
        """Waits until the clients have got so many more deltas: the load is under way."""
        wanted = self.num_deltas + num_deltas
        await eventually(lambda: asyncio.sleep(0, self.num_deltas), lambda count: count >= wanted)

    @property
    def num_deltas(self) -> int:
        return sum(len(followed.delta_s) for followed in self.followed)

    def recovery_s(self, deaths_s: Sequence[float]) -> list[float]:
        """For each death, how long the client that was hit hardest waited for its next token."""
        waits = [[f.waited_s(death_s) for f in self.followed] for death_s in deaths_s]
        return [max((wait for wait in each if wait is not None), default=0.0) for each in waits]

    async def _ask_on(self, rng: random.Random, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            ask = rng.choice(self.asks)
            followed = Followed(time.monotonic())
            self.followed.append(followed)
            deltas: list[Delta] = []
            async with self.client.stream(ask.prompt, **ask.options) as stream:
                async for delta in stream:
                    followed.delta_s.append(time.monotonic())
                    deltas.append(delta)
                followed.num_continuations = stream.num_continuations
                followed.timeline = stream.timeline
            assert [token for delta in deltas for token in delta.token_ids] == ask.token_ids
            assert "".join(delta.text for delta in deltas) == ask.text


async def make_asks(client: AsyncClient, num_asks: int, num_new: int) -> list[Ask]:
    """Random prompts, greedy and sampled, answered once by an undisturbed cluster."""
    rng = random.Random(5)
    shared = [rng.randrange(256) for _ in range(300)]
    asks = []
    for number in range(num_asks):
        prompt = shared[: rng.choice((0, 130, 300))]
        prompt += [rng.randrange(256) for _ in range(rng.choice((20, 200, 500)))]
        options: dict[str, Any] = {
            "max_tokens": num_new,
            "ignore_eos": True,
            "seed": number,
            "temperature": rng.choice((0.0, 0.8)),
        }
        answer = await client.generate(prompt, **options)
        asks.append(Ask(prompt, options, list(answer.token_ids), answer.text))
    return asks


def check_recovery(what: str, waits_s: Sequence[float], back_s: Sequence[float] = ()) -> None:
    """Clients waited after the deaths of `what`, but within the bound. Prints for how long, and when it was
    back."""
    line = f"{len(waits_s)} deaths of a {what}: the next token came after"
    line += f" {statistics.median(waits_s):.2f} s (median), {max(waits_s):.2f} s (worst)"
    if back_s:
        line += f"; back after {statistics.median(back_s):.2f} s (median)"
    print(line)
    assert min(waits_s) > 0, "a death that met nobody shows nothing"
    assert max(waits_s) < RECOVERY_S
