"""A router that leaves, as HTTP clients see it: as gRPC's do. Over a real uvicorn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from baton.rpc.server import Server
from router.http.app import create_app
from router.http.in_flight import InFlight
from router.http.server import HttpServer
from tests.fakes import FakeFrontend

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
WITHIN_S = 10


class SlowFrontend(FakeFrontend):
    """Says its second piece only when it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def _trouble(self, step: int) -> None:
        if step == 1:
            self.reached.set()
            await self.go_on.wait()


class Router:
    """Both faces of one, and a client of its HTTP."""

    def __init__(self) -> None:
        self.frontend = SlowFrontend()
        self.server = Server()
        self.in_flight = InFlight(self.server.one_request, lambda: self.server.draining)
        self.http: HttpServer
        self.client: httpx.AsyncClient

    async def __aenter__(self) -> Router:
        await self.server.start()
        app = create_app(self.frontend, CollectorRegistry(), in_flight=self.in_flight)
        self.http = await HttpServer.start(app, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{self.http.port}"
        self.client = httpx.AsyncClient(base_url=url, timeout=WITHIN_S, trust_env=False)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.client.aclose()
        await self.leave(0.0)

    async def leave(self, grace_s: float) -> None:
        """As the process does."""
        await self.server.drain(grace_s)
        self.in_flight.cut()
        await self.http.stop()

    async def ask(self, *, stream: bool) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=CHAT | {"stream": stream})

    async def until_draining(self) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not self.server.draining:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.001)


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    async with Router() as router:
        yield router


def events(response: httpx.Response) -> list[Any]:
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_runs_ends_by_itself_and_nothing_new_is_taken(
    router: Router, stream: bool
) -> None:
    running = asyncio.create_task(router.ask(stream=stream))
    await asyncio.wait_for(router.frontend.reached.wait(), WITHIN_S)
    leaving = asyncio.create_task(router.leave(WITHIN_S))
    await router.until_draining()
    for refused in (
        await router.ask(stream=stream),
        await router.client.get("/health"),
    ):
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["Connection"] == "close"
    assert not leaving.done()
    router.frontend.go_on.set()
    answer = await running
    assert answer.status_code == 200
    if stream:
        assert events(answer)[-1] == "[DONE]"
    await asyncio.wait_for(leaving, WITHIN_S)


async def test_what_outlasts_the_grace_ends_with_an_error(router: Router) -> None:
    asked = [asyncio.create_task(router.ask(stream=stream)) for stream in (True, False)]
    async with asyncio.timeout(WITHIN_S):
        while len(router.frontend.requests) < len(asked):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.001)
        await router.leave(0.01)
        stream, whole = await asyncio.gather(*asked)
    last = json.loads(events(stream)[-1])
    assert last["error"]["code"] == "draining"
    assert "[DONE]" not in stream.text
    assert whole.status_code == 503
    assert whole.json()["error"]["code"] == "draining"
