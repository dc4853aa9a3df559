"""Who may hold up whom: slow readers, overload, urgency, and requests that nobody waits for any more.

One cluster with a narrow gate: two requests in flight, three may wait.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from baton import AsyncClient
from baton.client.results import Load
from baton.client.stream import AsyncStream
from baton.cluster.local import LocalCluster
from baton.errors import Cancelled, DeadlineExceeded, Overloaded
from baton.rpc.status import from_rpc_error
from baton.types import PoolLoad
from baton.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.cluster.watching import WITHIN_S, accounts, eventually, router_load, settled

MAX_IN_FLIGHT, MAX_WAITING = 2, 3
LONG: dict[str, Any] = {"max_tokens": 3500, "ignore_eos": True}  # cancelled long before
# Many samples with many log-probabilities: megabytes before the client reads a second time.
WIDE: dict[str, Any] = {"max_tokens": 1000, "n": 32, "logprobs": 20, "ignore_eos": True}
# A connection that takes 64 KiB of what its client does not read, whatever gRPC would estimate.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]


@pytest.fixture(scope="module")
def narrow(checkpoint: Path) -> Iterator[LocalCluster]:
    with LocalCluster(
        str(checkpoint),
        worker_flags={"num_blocks": 640},
        router_flags={"max_waiting": MAX_WAITING},
        environment={
            "BATON_ROUTER_ADMISSION_MAX_IN_FLIGHT_PER_POOL": str(MAX_IN_FLIGHT),
            "BATON_ROUTER_TIMES_SLOW_CLIENT_S": "0.5",
        },
    ) as cluster:
        yield cluster


@pytest.fixture
async def client(narrow: LocalCluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(narrow.address) as client:
        yield client
    await settled(narrow.address)


@asynccontextmanager
async def running(client: AsyncClient, **options: Any) -> AsyncIterator[AsyncStream]:
    """A long request that has given its first token; cancelled in the end."""
    async with client.stream("long", **LONG | options) as stream:
        await anext(stream)
        yield stream


@asynccontextmanager
async def busy(client: AsyncClient) -> AsyncIterator[list[AsyncStream]]:
    """Everything that may be in flight is."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(client)) for _ in range(MAX_IN_FLIGHT)]


async def wait_for_waiting(address: str, num_waiting: int) -> Load:
    return await eventually(
        lambda: router_load(address), lambda load: load.num_waiting_requests == num_waiting
    )


# Slow readers


def nothing_held(seen: tuple[Load, list[PoolLoad]]) -> bool:
    load, pools = seen
    return load.num_running_requests == 0 and all(pool.num_held_blocks == 0 for pool in pools)


async def test_a_grpc_client_that_does_not_read_is_cut(
    narrow: LocalCluster, client: AsyncClient
) -> None:
    request = inference_pb2.GenerateRequest(
        text="wide", sampling=common_pb2.SamplingParams(**WIDE, temperature=1.0)
    )
    async with grpc.aio.insecure_channel(narrow.address, options=SMALL_WINDOW) as link:
        call = inference_pb2_grpc.InferenceStub(link).Generate(request)
        await call.read()
        # nobody else waits, and its place and its blocks come back although it is still there
        assert len((await client.generate("other", **LONG | {"max_tokens": 50})).token_ids) == 50
        await eventually(lambda: accounts(narrow.address), nothing_held)
        assert not call.done()
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            await read_all(call)
    error = from_rpc_error(cut.value)
    assert isinstance(error, Cancelled)
    assert "nothing was read for 0.5 s" in error.message


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_an_http_client_that_does_not_read_is_cut(
    narrow: LocalCluster, client: AsyncClient
) -> None:
    body = json.dumps({"prompt": "wide", "stream": True, **WIDE}).encode()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", narrow.http_port))
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: baton\r\nContent-Length: "
            + f"{len(body)}\r\n\r\n".encode()
            + body
        )
        await eventually(
            lambda: router_load(narrow.address), lambda load: load.num_running_requests == 1
        )
        assert len((await client.generate("other", **LONG | {"max_tokens": 50})).token_ids) == 50
        await eventually(lambda: accounts(narrow.address), nothing_held)
        slow.settimeout(30)
        with slow.makefile("rb") as answer:
            assert not answer.read().endswith(b"\r\n0\r\n\r\n"), "the answer came to its end"


async def test_http_clients_that_never_finish_asking(
    narrow: LocalCluster, client: AsyncClient
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: baton\r\nContent-Length: 1000\r\n"
    for begun in (b"", head, head + b"\r\n", head + b'\r\n{"prompt": '):
        reader, writer = await asyncio.open_connection("127.0.0.1", narrow.http_port)
        writer.write(begun)
        assert b" 200 OK" not in await asyncio.wait_for(read_to_end(reader), WITHIN_S)
        writer.close()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:  # so it looks, too, when the other side hangs up
        return b""


# Overload and urgency


async def test_overload_is_refused_at_once(narrow: LocalCluster, client: AsyncClient) -> None:
    async with busy(client):
        waiting = [asyncio.create_task(client.generate("w", max_tokens=1)) for _ in range(3)]
        load = await wait_for_waiting(narrow.address, MAX_WAITING)
        assert load.num_running_requests == MAX_IN_FLIGHT
        with pytest.raises(Overloaded) as refused:
            await client.generate("too many", max_tokens=1)
        assert refused.value.retry_after_s > 0
        async with httpx.AsyncClient(trust_env=False) as http:
            for stream in (False, True):
                answer = await http.post(
                    f"{narrow.base_url}/completions",
                    json={"prompt": "too many", "max_tokens": 1, "stream": stream},
                )
                assert answer.status_code == 429
                assert int(answer.headers["Retry-After"]) >= 1
                assert answer.json()["error"]["code"] == "overloaded"
        assert not any(task.done() for task in waiting)
    assert [len(each.token_ids) for each in await asyncio.gather(*waiting)] == [1, 1, 1]


async def test_the_more_urgent_go_first_and_displace_the_less(
    narrow: LocalCluster, client: AsyncClient
) -> None:
    order: list[int] = []

    async def ask(priority: int) -> None:
        await client.generate("queued", max_tokens=1, priority=priority)
        order.append(priority)

    async with busy(client) as holders:
        tasks: dict[int, asyncio.Task[None]] = {}
        for number, priority in enumerate((0, -1, 5), start=1):
            tasks[priority] = asyncio.create_task(ask(priority))
            await wait_for_waiting(narrow.address, number)
        tasks[3] = asyncio.create_task(ask(3))
        with pytest.raises(Overloaded):  # the least urgent gives way
            await tasks.pop(-1)
        holders[0].cancel()  # one place, so one after the other
        await asyncio.gather(*tasks.values())
    assert order == [5, 3, 0]


# Requests that nobody waits for


async def test_a_deadline_ends_a_request_wherever_it_is(
    narrow: LocalCluster, client: AsyncClient
) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.generate("decoding", timeout_s=0.3, **LONG)
    async with busy(client):
        with pytest.raises(DeadlineExceeded):
            await client.generate("at the gate", timeout_s=0.3, **LONG)
        assert (await router_load(narrow.address)).num_waiting_requests == 0
    await settled(narrow.address)
    states = [each.state for each in await client.requests(limit=4)]
    assert states.count("deadline_exceeded") + states.count("cancelled") == 4


async def test_a_cancelled_request_gives_back_what_it_has(
    narrow: LocalCluster, client: AsyncClient
) -> None:
    async with running(client) as one:
        for _ in range(500):  # tokens, in blocks of 64
            await anext(one)
        async with running(client) as other:
            _, [before] = await accounts(narrow.address)
            assert before.num_held_blocks > 500 // 64
            one.cancel()
            _, [after] = await eventually(
                lambda: accounts(narrow.address), lambda seen: seen[1][0].num_running_requests == 1
            )
            assert 0 < after.num_held_blocks < before.num_held_blocks
            await anext(other)  # and the other goes on
    await settled(narrow.address)


async def test_an_http_client_that_hangs_up(narrow: LocalCluster, client: AsyncClient) -> None:
    url = f"{narrow.base_url}/completions"
    for stream in (True, False):
        body = {"prompt": "long", "stream": stream, **LONG}
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            asking = asyncio.create_task(read_a_little(http, url, body))
            await eventually(
                lambda: accounts(narrow.address), lambda seen: seen[1][0].num_running_requests == 1
            )
            asking.cancel()
        await settled(narrow.address)


async def read_a_little(http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> None:
    async with http.stream("POST", url, json=body) as answer:
        async for _ in answer.aiter_bytes():
            await asyncio.sleep(0)


async def test_a_client_process_that_is_killed(narrow: LocalCluster, client: AsyncClient) -> None:
    asker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "baton.cli.main", "generate", "long", "--address", narrow.address),
        *("--max-tokens", "3500", "--ignore-eos"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert asker.stdout is not None
    assert await asker.stdout.read(1)
    assert (await router_load(narrow.address)).num_running_requests == 1
    asker.send_signal(signal.SIGKILL)
    await asker.communicate()
    await settled(narrow.address)
