"""The SDK over routers in processes of their own that die or stop in the middle of a stream."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from baton import AsyncClient

ROOT = Path(__file__).parents[2]

# A router with the arithmetic model of tests.fake_inference; prints its port.
ROUTER = """
import asyncio
from baton.rpc.server import Server
from baton.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from tests.fake_inference import FakeInference

async def main():
    server = Server()
    server.add(add_InferenceServicer_to_server, FakeInference(pause_s=0.002))
    print(await server.start(), flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""


@dataclass
class Router:
    process: subprocess.Popen[str]
    address: str


@pytest.fixture
def routers() -> Iterator[list[Router]]:
    started = []
    for _ in range(2):
        command = [sys.executable, "-c", ROUTER]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        started.append(Router(process, f"127.0.0.1:{int(process.stdout.readline())}"))
    yield started
    for router in started:
        router.process.kill()
        router.process.communicate()


@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP])
async def test_streams_go_on_where_a_router_was_lost(
    routers: list[Router], loss: signal.Signals
) -> None:
    """SIGSTOP leaves the connection open: only the keepalive tells that nobody is there."""
    num_streams, max_tokens = 8, 200

    async def follow(client: AsyncClient, seed: int) -> int:
        tokens: list[int] = []
        texts: list[str] = []
        async with client.stream("hi", max_tokens=max_tokens, seed=seed) as stream:
            async for delta in stream:
                tokens += delta.token_ids
                texts.append(delta.text)
                if seed == 0 and len(tokens) == max_tokens // 4:
                    routers[0].process.send_signal(loss)
        assert tokens == list(range(seed, seed + max_tokens))
        assert "".join(texts) == "".join(f"{token} " for token in tokens)
        return stream.num_continuations

    async with AsyncClient([router.address for router in routers]) as client:
        followed = await asyncio.wait_for(
            asyncio.gather(*(follow(client, seed) for seed in range(num_streams))), 30
        )
    assert followed == [1] * num_streams
