"""A worker that is killed or leaves in the middle of many streams: each goes on with the very next token
and character, on another worker, and is in the end what it would have been alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton import AsyncClient
from baton.client.collect import collect
from baton.client.results import Generation
from baton.errors import Unavailable
from baton.rpc.channel import channel
from baton.state.base import Member
from baton.v1 import worker_pb2, worker_pb2_grpc
from cluster.local import LocalCluster
from cluster.process import Process
from tests.cluster.watching import WITHIN_S, eventually, settled

NUM_STREAMS = 8
LEASE_S = 1.5  # after which a worker that was killed is forgotten

Health = health_pb2.HealthCheckResponse


@pytest.fixture(scope="module")
def pair(checkpoint: Path) -> Iterator[LocalCluster]:
    with LocalCluster(
        str(checkpoint),
        num_workers=2,
        worker_flags={"deterministic": True, "num_blocks": 400},
        environment={"BATON_ROUTER_TIMES_WORKER_LEASE_S": str(LEASE_S)},
    ) as cluster:
        yield cluster


@pytest.fixture
async def client(pair: LocalCluster) -> AsyncIterator[AsyncClient]:
    """Of a cluster that has two workers, whatever an earlier test has done to it."""
    while sum(worker.alive for worker in pair.workers) < 2:
        pair.add_worker()
    async with AsyncClient(pair.address) as client:
        await workers(client, pair)
        yield client
    await settled(pair.address)


async def workers(client: AsyncClient, cluster: LocalCluster) -> dict[str, Member]:
    """By id, once those that the router knows are those that live."""
    living = sorted(worker.name for worker in cluster.workers if worker.alive)

    def are_known(members: list[Member]) -> bool:
        return [m.info.worker_id for m in members if not m.draining] == living

    members = await eventually(client.workers, are_known)
    return {member.info.worker_id: member for member in members}


def process_called(cluster: LocalCluster, worker_id: str) -> Process:
    [process] = [worker for worker in cluster.workers if worker.name == worker_id]
    return process


async def exit_code(process: Process) -> int:
    code = await eventually(lambda: asyncio.to_thread(process.popen.poll), lambda c: c is not None)
    assert code is not None
    return code


async def health(address: str) -> int:
    async with channel(address) as link:
        request = health_pb2.HealthCheckRequest()
        status: int = (await health_pb2_grpc.HealthStub(link).Check(request, timeout=5)).status
        return status


def questions(max_tokens: int) -> list[tuple[str, dict[str, Any]]]:
    """Greedy and drawn, with several samples, log-probabilities, penalties, stop strings that never
    match but are always watched for."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 1.0, "stop": ["then and then"]},
        {"temperature": 0.8, "n": 2, "presence_penalty": 0.5},
        {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1, "logprobs": 0},
    ]
    return [
        (
            f"prompt {number} " * (1 + 9 * number),
            {"max_tokens": max_tokens, "ignore_eos": True, "seed": number, **kinds[number % 4]},
        )
        for number in range(NUM_STREAMS)
    ]


@asynccontextmanager
async def streaming(
    client: AsyncClient, asked: list[tuple[str, dict[str, Any]]]
) -> AsyncIterator[list[asyncio.Task[Generation]]]:
    """Reads all of them; entered once each has given tokens."""
    begun = asyncio.Semaphore(0)

    async def follow(prompt: str, options: dict[str, Any]) -> Generation:
        async with client.stream(prompt, **options) as stream:
            first = await anext(stream)
            begun.release()
            assert first.token_ids
            stream._ready.appendleft(first)
            return await collect(stream)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow(*each)) for each in asked]
        for _ in tasks:
            await asyncio.wait_for(begun.acquire(), WITHIN_S)
        yield tasks


async def alone(client: AsyncClient, asked: list[tuple[str, dict[str, Any]]]) -> list[Generation]:
    return [await client.generate(prompt, **options) for prompt, options in asked]
