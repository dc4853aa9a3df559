"""A worker that is killed or leaves in the middle of many streams: each goes on with the very next token
and character on another worker, and is in the end what it would have been alone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.cluster.process import Process
from baton.errors import Unavailable
from baton.rpc.channel import channel
from baton.state.base import Member
from baton.types import Timeline
from baton.v1 import worker_pb2, worker_pb2_grpc
from tests.checkpoints import make_checkpoint
from tests.cluster.lives import Answer, Kind, read
from tests.cluster.watching import WITHIN_S, eventually, integrity, settled

LEASE_S = 1.5  # after which a worker that was killed is forgotten
# Drawn in every way there is; the stop string never matches and is always watched for.
WAYS: Sequence[dict[str, Any]] = (
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 1.0, "stop": ["then and then and then"]},
    {"temperature": 0.8, "n": 2, "presence_penalty": 0.5},
    {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.1, "logprobs": 0},
)


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
        await living_workers(client, pair)
        yield client
        await living_workers(client, pair)
    await settled(pair.address)


async def living_workers(client: AsyncClient, cluster: LocalCluster) -> dict[str, Member]:
    """By id, once those that the router knows are those that live."""

    def are_known(members: list[Member]) -> bool:
        living = sorted(worker.name for worker in cluster.workers if worker.alive)
        return [member.info.worker_id for member in members if not member.draining] == living

    members = await eventually(client.workers, are_known)
    return {member.info.worker_id: member for member in members}


async def exit_code(process: Process) -> int | None:
    async def poll() -> int | None:
        return process.popen.poll()

    return await eventually(poll, lambda code: code is not None)


@pytest.fixture(scope="module")
def kinds(pair: LocalCluster) -> list[Kind]:
    return asyncio.run(long_kinds(pair.address))


async def long_kinds(address: str) -> list[Kind]:
    """Half of the prompts are shorter than a block: these go where fewer requests run."""
    kinds = [
        Kind(
            f"prompt {number} " * (40 if number % 2 else 3),
            {
                "max_tokens": 500,
                "ignore_eos": True,
                "seed": number,
                "n": 1,
                **WAYS[number // 2],
            },
        )
        for number in range(2 * len(WAYS))
    ]
    async with AsyncClient(address) as client:
        for kind in kinds:
            await kind.run_alone(client)
    return kinds


async def follow(client: AsyncClient, kind: Kind, begun: asyncio.Semaphore) -> Timeline:
    answers: dict[int, Answer] = {}
    async with client.stream(kind.prompt, **kind.options) as stream:
        await read(stream, answers, most=10)
        begun.release()
        await read(stream, answers)
        kind.check(answers, stream)
        assert stream.timeline is not None
        assert stream.num_continuations == 0  # the router's work, not the SDK's
        return stream.timeline


@asynccontextmanager
async def streaming(
    client: AsyncClient, kinds: Sequence[Kind]
) -> AsyncIterator[list[asyncio.Task[Timeline]]]:
    """All of them at once, each checked to its end; entered once each has given tokens."""
    begun = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(follow(client, kind, begun)) for kind in kinds]
        for _ in tasks:
            await asyncio.wait_for(begun.acquire(), WITHIN_S)
        yield tasks


async def num_running(members: dict[str, Member]) -> list[int]:
    pools = [await integrity(member.info.address) for member in members.values()]
    return [pool.num_running_requests for pool in pools]


async def check_goes_on_elsewhere(tasks: Sequence[asyncio.Task[Timeline]], left: str) -> None:
    """Nobody ended on the worker that left, and some had begun there."""
    timelines = await asyncio.gather(*tasks)
    assert left not in {timeline.decode_worker for timeline in timelines}
    assert {timeline.num_attempts for timeline in timelines} == {1, 2}
    for timeline in timelines:
        assert all(offset_s >= 0 for offset_s in timeline.events.values())


async def test_a_worker_that_is_killed(
    pair: LocalCluster, client: AsyncClient, kinds: list[Kind]
) -> None:
    members = await living_workers(client, pair)
    async with streaming(client, kinds) as tasks:
        assert all(await num_running(members)), "one worker has no request"
        victim = pair.workers[-1]
        victim.popen.send_signal(signal.SIGKILL)
        await check_goes_on_elsewhere(tasks, victim.name)
    assert victim.popen.wait() == -signal.SIGKILL


async def test_a_worker_that_is_killed_while_another_has_other_weights(
    pair: LocalCluster, client: AsyncClient, kinds: list[Kind], tmp_path: Path
) -> None:
    """What was begun goes on with the same weights, also where a worker with others is idle."""
    async with streaming(client, kinds) as tasks:
        model = make_checkpoint(tmp_path / Path(pair.model).name, "llama", seed=1)
        other = await asyncio.to_thread(pair.add_worker, model=str(model))
        members = await living_workers(client, pair)
        assert len({member.info.weights for member in members.values()}) == 2
        assert len({member.info.model for member in members.values()}) == 1
        victim = pair.workers[-2]
        victim.popen.send_signal(signal.SIGKILL)
        timelines = await asyncio.gather(*tasks)
    assert other.name not in {timeline.decode_worker for timeline in timelines}
    assert victim.popen.wait() == -signal.SIGKILL
    served = [await client.generate("new", max_tokens=1) for _ in range(4)]
    assert all(each.timeline.decode_worker for each in served)
    other.popen.send_signal(signal.SIGTERM)
    assert await exit_code(other) == 0


async def test_a_worker_that_drains(
    pair: LocalCluster, client: AsyncClient, kinds: list[Kind]
) -> None:
    """What runs there ends there; nothing new comes; health says so while it still answers."""
    members = await living_workers(client, pair)
    leaver = pair.workers[-1]
    address = members[leaver.name].info.address
    async with streaming(client, kinds) as tasks, channel(address) as link:
        health: Any = health_pb2_grpc.HealthStub(link)  # the types lack its methods
        question = health_pb2.HealthCheckRequest()
        serving, not_serving = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        assert (await health.Check(question)).status == serving
        assert all(await num_running(members)), "one worker has no request"
        await client.drain(leaver.name, grace_s=WITHIN_S)
        await eventually(
            lambda: health.Check(question), lambda answer: answer.status == not_serving
        )
        info = await worker_pb2_grpc.WorkerStub(link).GetInfo(worker_pb2.GetInfoRequest())
        assert info.worker_id == leaver.name
        assert leaver.alive
        assert not any(task.done() for task in tasks), "nothing ran any more: give them more tokens"
        for _ in range(4):
            new = await client.generate("new", max_tokens=1)
            assert new.timeline.decode_worker != leaver.name
        timelines = await asyncio.gather(*tasks)
        assert await exit_code(leaver) == 0
    assert {timeline.num_attempts for timeline in timelines} == {1}
    assert leaver.name in {timeline.decode_worker for timeline in timelines}


async def test_a_worker_whose_grace_is_over(
    pair: LocalCluster, client: AsyncClient, kinds: list[Kind]
) -> None:
    members = await living_workers(client, pair)
    async with streaming(client, kinds) as tasks:
        assert all(await num_running(members)), "one worker has no request"
        leaver = pair.workers[-1]
        await client.drain(leaver.name, grace_s=1e-3)
        await check_goes_on_elsewhere(tasks, leaver.name)
    assert await exit_code(leaver) == 0


async def test_the_only_worker_is_replaced(pair: LocalCluster, client: AsyncClient) -> None:
    """SIGTERM drains, too. While nobody serves, health says so and requests wait a while."""
    for worker in [worker for worker in pair.workers if worker.alive]:
        worker.popen.send_signal(signal.SIGTERM)
        assert await exit_code(worker) == 0
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{pair.http_port}/health"

        async def status() -> int:
            return (await http.get(url)).status_code

        await eventually(status, lambda code: code == 503)
        with pytest.raises(Unavailable) as nobody:
            await client.generate("now", max_tokens=1)
        assert nobody.value.retry_after_s > 0
        pair.add_worker()
        await eventually(status, lambda code: code == 200)
    assert len((await client.generate("now", max_tokens=3, ignore_eos=True)).token_ids) == 3
