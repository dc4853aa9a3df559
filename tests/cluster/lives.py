"""Random requests and what may become of them: finished, given up in one way or another, continued. Each
is checked against what the same request answered when nobody else was there."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from baton import AsyncClient
from baton.client.results import Delta
from baton.client.stream import AsyncStream
from baton.errors import DeadlineExceeded, Overloaded
from baton.kv_records import STORED, decode
from baton.rpc.channel import channel
from baton.types import BlockId, FinishReason, PositionLogprobs, WorkerInfo
from baton.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from tests.cluster.watching import WITHIN_S, eventually, settled

MAX_OPEN = 64
NUM_BLOCKS = 40
MAX_PROMPT, MAX_NEW = 150, 40
# A few requests fit at a time; the others wait at the router's gate, or for blocks.
TINY_POOL: dict[str, Any] = {
    "deterministic": True,
    "block_size": 16,
    "num_blocks": NUM_BLOCKS,
    "max_model_len": MAX_PROMPT + MAX_NEW + 20,
    "max_chunk_tokens": 64,
}
NARROW_GATE = {"BATON_ROUTER_ADMISSION_MAX_IN_FLIGHT_PER_POOL": "40"}

Prompt = str | list[int]


@dataclass
class Answer:
    """All that a client got for one sample, as it came."""

    deltas: list[Delta] = field(default_factory=list)

    def token_ids(self, num_deltas: int | None = None) -> list[int]:
        return [token for delta in self.deltas[:num_deltas] for token in delta.token_ids]

    def text(self, num_deltas: int | None = None) -> str:
        return "".join(delta.text for delta in self.deltas[:num_deltas])

    @property
    def logprobs(self) -> list[PositionLogprobs]:
        return [position for delta in self.deltas for position in delta.logprobs]

    @property
    def end(self) -> tuple[FinishReason | None, str | None, int | None]:
        last = self.deltas[-1]
        return last.finish_reason, last.stop, last.stop_token_id


@dataclass
class Kind:
    """A request, and what it answers when nobody else is there."""

    prompt: Prompt
    options: dict[str, Any]
    alone: list[Answer] = field(default_factory=list)
    prompt_logprobs: Sequence[PositionLogprobs] = ()

    @classmethod
    def make(cls, rng: random.Random, shared: Sequence[int]) -> Kind:
        num_prompt = rng.choice((1, 2, 15, 16, 17, 40, 90, MAX_PROMPT))
        tokens = [*shared[: rng.choice((0, num_prompt // 2))]]
        tokens += [rng.randrange(256) for _ in range(num_prompt - len(tokens))]
        prompt: Prompt = tokens
        if rng.random() < 0.2:
            prompt = "".join(rng.choice("the and in then ") for _ in range(num_prompt))
        options: dict[str, Any] = {
            "max_tokens": rng.randint(1, MAX_NEW),
            "seed": rng.getrandbits(64),
            "n": rng.choice((1, 1, 1, 2, 4)),
            "priority": rng.randint(-1, 1),
            "temperature": rng.choice((0.0, 0.7, 1.0, 1.3)),
        }
        more = (
            ("top_k", rng.randint(1, 50)),
            ("top_p", rng.uniform(0.5, 1)),
            ("min_p", rng.uniform(0, 0.1)),
            ("repetition_penalty", rng.uniform(0.8, 1.3)),
            ("frequency_penalty", rng.uniform(-1, 1)),
            ("presence_penalty", rng.uniform(-1, 1)),
            ("logit_bias", {rng.randrange(256): rng.uniform(-5, 5) for _ in range(3)}),
            ("min_tokens", rng.randint(0, options["max_tokens"])),
            ("stop", [rng.choice("aeiou"), "th"]),
            ("stop_token_ids", rng.sample(range(256), 8)),
            ("logprobs", rng.randint(0, 3)),
            ("prompt_logprobs", rng.randint(0, 2)),
            ("ignore_eos", True),
        )
        options |= {name: value for name, value in more if rng.random() < 0.25}
        return cls(prompt, options)

    async def run_alone(self, client: AsyncClient) -> None:
        answers: dict[int, Answer] = {}
        async with client.stream(self.prompt, **self.options) as stream:
            await read(stream, answers)
            self.alone = [answers[index] for index in sorted(answers)]
            self.prompt_logprobs = stream.prompt_logprobs
        assert len(self.alone) == self.options["n"]

    def check(self, answers: dict[int, Answer], stream: AsyncStream) -> None:
        """A finished answer is what it was alone, to the last bit."""
        assert sorted(answers) == list(range(self.options["n"]))
        for index, alone in enumerate(self.alone):
            got = answers[index]
            assert got.token_ids() == alone.token_ids()
            assert got.text() == alone.text()
            assert got.end == alone.end
            assert got.logprobs == alone.logprobs
        assert list(stream.prompt_logprobs) == list(self.prompt_logprobs)

    def check_begun(self, answers: dict[int, Answer]) -> None:
        """What came before a request was given up is the beginning of what it was alone."""
        for index, got in answers.items():
            token_ids = got.token_ids()
            assert token_ids == self.alone[index].token_ids()[: len(token_ids)]
            assert self.alone[index].text().startswith(got.text())


async def read(stream: AsyncStream, answers: dict[int, Answer], most: int | None = None) -> None:
    """Reads to the end, or until `most` deltas have come."""
    async for delta in stream:
        answers.setdefault(delta.sample_index, Answer()).deltas.append(delta)
        if most is not None and (most := most - 1) <= 0:
            return


# What may become of a request. Each returns how it ended.


async def completes(client: AsyncClient, kind: Kind, rng: random.Random) -> str:
    answers: dict[int, Answer] = {}
    async with client.stream(kind.prompt, **kind.options) as stream:
        await read(stream, answers)
        kind.check(answers, stream)
        assert stream.timeline is not None
        assert stream.timeline.num_preemptions >= 0
        return "preempted" if stream.timeline.num_preemptions else "completed"


async def is_closed_early(client: AsyncClient, kind: Kind, rng: random.Random) -> str:
    answers: dict[int, Answer] = {}
    async with client.stream(kind.prompt, **kind.options) as stream:
        await read(stream, answers, most=rng.randint(1, 12))
    kind.check_begun(answers)
    return "closed"


async def is_cancelled_at_any_time(client: AsyncClient, kind: Kind, rng: random.Random) -> str:
    """Also while it waits at the gate or for blocks, or computes its prompt."""
    answers: dict[int, Answer] = {}
    try:
        async with asyncio.timeout(rng.uniform(0, 0.6)):
            async with client.stream(kind.prompt, **kind.options) as stream:
                await read(stream, answers)
                kind.check(answers, stream)
                return "completed"
    except TimeoutError:
        kind.check_begun(answers)
        return "cancelled"


async def loses_its_client(client: AsyncClient, kind: Kind, rng: random.Random) -> str:
    """The connection itself goes away."""
    answers: dict[int, Answer] = {}
    async with AsyncClient(client._replicas.addresses) as own:
        await read(own.stream(kind.prompt, **kind.options), answers, most=rng.randint(1, 12))
    kind.check_begun(answers)
    return "disconnected"


async def has_a_deadline(client: AsyncClient, kind: Kind, rng: random.Random) -> str:
    answers: dict[int, Answer] = {}
    try:
        options = kind.options | {"timeout_s": rng.uniform(0.001, 0.8)}
        async with client.stream(kind.prompt, **options) as stream:
            await read(stream, answers)
            kind.check(answers, stream)
            return "completed"
    except DeadlineExceeded:
        kind.check_begun(answers)
        return "expired"
    except Overloaded:  # it could not be met, and was refused at once
        assert not answers
        return "expired"


async def is_a_continuation(client: AsyncClient, kind: Kind, rng: random.Random) -> str:
    """From any tokens that a client may have when its router is lost: tokens and text go on."""
    if kind.options.get("prompt_logprobs") is not None:
        return await completes(client, kind, rng)
    cuts = [rng.randrange(len(alone.deltas)) for alone in kind.alone]
    forced = [alone.token_ids(cut) for alone, cut in zip(kind.alone, cuts, strict=True)]
    answers: dict[int, Answer] = {}
    options = kind.options | {"output_token_ids": forced}
    async with client.stream(kind.prompt, **options) as stream:
        await read(stream, answers)
    for index, (alone, cut) in enumerate(zip(kind.alone, cuts, strict=True)):
        assert forced[index] + answers[index].token_ids() == alone.token_ids()
        assert alone.text(cut) + answers[index].text() == alone.text()
        assert answers[index].end == alone.end
    return "continued"


FATES = {
    completes: 5,
    is_a_continuation: 2,
    is_closed_early: 1,
    is_cancelled_at_any_time: 1,
    has_a_deadline: 1,
    loses_its_client: 0.5,
}


# What the pool publishes and forgets meanwhile


@dataclass
class Events:
    """Follows a pool's KV events as a router does."""

    published: set[BlockId] = field(default_factory=set)
    num_evicted: int = 0

    async def follow(self, worker: WorkerInfo) -> None:
        """For ever. Where the connection was lost it subscribes again."""
        async with channel(worker.address) as link:
            while True:
                try:
                    await self._follow(_kv_events(link, worker))
                except grpc.aio.AioRpcError as error:
                    if error.code() != grpc.StatusCode.UNAVAILABLE:
                        raise

    async def _follow(self, batches: AsyncIterable[worker_pb2.KvEventBatch]) -> None:
        next_number: int | None = None
        async for batch in batches:
            assert batch.snapshot == (next_number is None)
            assert next_number in (None, batch.first_number)
            next_number = batch.first_number + batch.count
            if batch.snapshot:
                self.published.clear()
            for change, block_ids in decode(batch.records):
                if change == STORED:
                    self.published.update(block_ids)
                else:
                    assert self.published.issuperset(block_ids)
                    self.published.difference_update(block_ids)
                    self.num_evicted += len(block_ids)


def _kv_events(
    link: grpc.aio.Channel, worker: WorkerInfo
) -> AsyncIterable[worker_pb2.KvEventBatch]:
    request = worker_pb2.StreamKvEventsRequest(pool=common_pb2.Pool(worker_id=worker.worker_id))
    batches: AsyncIterable[worker_pb2.KvEventBatch]
    batches = worker_pb2_grpc.WorkerStub(link).StreamKvEvents(request, wait_for_ready=True)
    return batches


async def cached_by(worker: WorkerInfo) -> set[BlockId]:
    """What the worker itself says that its pool has published, now."""
    async with channel(worker.address) as link, asyncio.timeout(WITHIN_S):
        async for batch in _kv_events(link, worker):
            assert batch.snapshot
            return {block_id for _, block_ids in decode(batch.records) for block_id in block_ids}
    raise AssertionError("the stream ended without a snapshot")


@asynccontextmanager
async def followed(client: AsyncClient) -> AsyncIterator[dict[str, Events]]:
    """The events of every worker's pool, by worker, which at the end tell exactly what it has cached."""
    workers = [worker.info for worker in await client.workers()]
    events = {info.worker_id: Events() for info in workers}
    tasks = [asyncio.create_task(events[info.worker_id].follow(info)) for info in workers]
    yield events
    await settled(client._replicas.addresses[0])
    for info in workers:
        cached = await cached_by(info)
        await eventually(
            lambda info=info: asyncio.sleep(0, events[info.worker_id].published),  # type: ignore[misc]
            lambda published, cached=cached: published == cached,  # type: ignore[misc]
        )
    for task in tasks:
        assert not task.done(), task.result()
        task.cancel()


async def make_kinds(client: AsyncClient, num_kinds: int) -> list[Kind]:
    """Random requests, each answered once with nobody else there."""
    rng = random.Random(20)
    shared = [rng.randrange(256) for _ in range(MAX_PROMPT)]
    kinds = [Kind.make(rng, shared) for _ in range(num_kinds)]
    for kind in kinds:
        await kind.run_alone(client)
    return kinds


async def live(client: AsyncClient, kinds: Sequence[Kind], num_requests: int) -> Counter[str]:
    """How `num_requests` random requests of `kinds` ended."""
    fates = random.Random(21).choices(list(FATES), list(FATES.values()), k=num_requests)
    ends: Counter[str] = Counter()
    open_requests = asyncio.Semaphore(MAX_OPEN)

    async def one(number: int) -> None:
        rng = random.Random(number)
        async with open_requests:
            ends[await fates[number](client, rng.choice(kinds), rng)] += 1

    await asyncio.gather(*(one(number) for number in range(num_requests)))
    assert ends.total() == num_requests
    for end in ("completed", "closed", "cancelled", "expired", "disconnected", "continued"):
        assert ends[end] > 0, end
    return ends
