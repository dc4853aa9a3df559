"""The load generator's two protocols, against servers on real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from baton import errors
from baton.bench.faces import plain_http
from baton.bench.grpc_target import GrpcTarget
from baton.bench.openai_target import OpenAiTarget
from baton.bench.target import ServerSettings, Target
from baton.bench.workload import PlannedRequest, prompt_text
from baton.rpc.server import Server
from baton.types import Usage
from baton.v1 import inference_pb2_grpc
from router.http.app import create_app
from router.http.server import HttpServer
from tests.fake_inference import FakeInference
from tests.fakes import FakeFrontend

REQUEST = PlannedRequest(0, 4, 3)


async def events_of(target: Target) -> list[int | Usage]:
    return [event async for event in target.stream(REQUEST)]


class Foreign:
    """A server that is not Baton: answers every POST with `status` and `body`."""

    def __init__(self) -> None:
        self.status = 200
        self.body = ""
        self.requests: list[dict[str, Any]] = []
        self.headers: dict[bytes, bytes] = {}
        self.paths: list[str] = []
        self.clients: list[tuple[str, int]] = []  # one per request: the other end of its connection

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.clients.append(scope["client"])
        self.headers = dict(scope["headers"])
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if body:
            self.requests.append(json.loads(body))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body.encode()})

    def events(self, *events: Any, done: bool = True) -> None:
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.body = "".join([": a comment\n\n", *lines, "data: [DONE]\n\n" if done else ""])


@pytest.fixture
def foreign() -> Foreign:
    return Foreign()


@pytest_asyncio.fixture
async def foreign_url(foreign: Foreign) -> AsyncIterator[str]:
    server = await HttpServer.start(foreign, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.port}/v1"
    await server.stop()


def openai_settings(url: str, **others: Any) -> ServerSettings:
    return ServerSettings("openai", (), url, **others)


def text(words: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": words}]}


@pytest.fixture
def fake() -> FakeInference:
    return FakeInference()


@pytest_asyncio.fixture
async def grpc_address(fake: FakeInference) -> AsyncIterator[str]:
    server = Server()
    server.add(inference_pb2_grpc.add_InferenceServicer_to_server, fake)
    async with server:
        yield server.address


async def test_grpc(fake: FakeInference, grpc_address: str) -> None:
    target = await GrpcTarget.connect(ServerSettings("grpc", (grpc_address,), ""), seed=1)
    try:
        assert (target.model, target.max_model_len) == ("fake", 64)
        events = await events_of(target)
    finally:
        await target.close()
    assert events[-1] == Usage(3, 0, 3)
    assert sum(event for event in events if isinstance(event, int)) == 3
    request = fake.requests[-1]
    assert len(request.token_ids.ids) == 4
    assert all(token_id < 256 for token_id in request.token_ids.ids)
    assert (request.model, request.sampling.max_tokens) == ("fake", 3)
    assert request.sampling.ignore_eos


async def test_grpc_refuses(fake: FakeInference, grpc_address: str) -> None:
    with pytest.raises(errors.UnknownModel, match="'other' is not served; these are: fake"):
        await GrpcTarget.connect(ServerSettings("grpc", (grpc_address,), "", "other"), seed=1)
    target = await GrpcTarget.connect(ServerSettings("grpc", (grpc_address,), ""), seed=1)
    fake.refuse = errors.Overloaded("full")
    with pytest.raises(errors.Overloaded):
        await events_of(target)
    await target.close()


@pytest.mark.parametrize("api", ["completions", "chat"])
async def test_baton_s_own_openai_face(api: Any) -> None:
    frontend = FakeFrontend()
    server = await HttpServer.start(create_app(frontend, CollectorRegistry()), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.port}/v1"
    target = await OpenAiTarget.connect(openai_settings(url, api=api), seed=1)
    try:
        assert target.model == "tiny"  # the first that is listed
        assert await events_of(target) == [1, 1, 1, Usage(2, 1, 3)]
    finally:
        await target.close()
        await server.stop()
    sampling = frontend.requests[-1].sampling
    assert (sampling.max_tokens, sampling.ignore_eos) == (3, True)


async def test_only_openai_s_own_fields(foreign: Foreign, foreign_url: str) -> None:
    foreign.events(text("a"))
    settings = openai_settings(foreign_url, model="m", ignore_eos=False, api_key="secret")
    target = await OpenAiTarget.connect(settings, seed=1)
    await events_of(target)
    await target.close()
    assert foreign.paths == ["/v1/completions"]
    assert foreign.headers[b"authorization"] == b"Bearer secret"
    assert foreign.requests == [
        {
            "model": "m",
            "prompt": prompt_text(REQUEST, seed=1),
            "max_tokens": 3,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


async def test_a_connection_is_kept_for_the_next_request(
    foreign: Foreign, foreign_url: str
) -> None:
    foreign.events(text("a"))
    target = await OpenAiTarget.connect(openai_settings(foreign_url, model="m"), seed=1)
    for _ in range(3):
        await events_of(target)
    await target.close()
    assert len(foreign.clients) == 3
    assert len(set(foreign.clients)) == 1


async def test_the_plain_reader_keeps_its_connection_and_reads_to_the_end() -> None:
    """The second opinion on TTFT is one of the same answers."""
    frontend = FakeFrontend()
    server = await HttpServer.start(create_app(frontend, CollectorRegistry()), "127.0.0.1", 0)
    async with plain_http("127.0.0.1", server.port) as ask:
        for number in range(3):
            assert await ask({"prompt": f"p{number}", "stream": True}) > 0
        (connection,) = server._server.server_state.connections
        assert connection is not None
        with pytest.raises(errors.Internal, match="plain reader"):
            await ask({"prompt": 3})
    await server.stop()
    assert [request.prompt for request in frontend.requests] == ["p0", "p1", "p2"]


async def test_what_counts_as_a_token(foreign: Foreign, foreign_url: str) -> None:
    foreign.events(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"content": "a"}}], "usage": None},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}},
    )
    target = await OpenAiTarget.connect(openai_settings(foreign_url, model="m", api="chat"), seed=1)
    assert await events_of(target) == [1, 1, Usage(9, 0, 5)]
    await target.close()
    assert foreign.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, {"error": {"message": "bad"}}, errors.InvalidArgument, "bad"),
        (401, {"error": {"message": "who?"}}, errors.Unauthenticated, "who?"),
        (404, {"detail": "Not Found"}, errors.NotFound, "Not Found"),
        (429, {"error": "slow down"}, errors.Overloaded, "slow down"),
        (500, "a page", errors.Internal, "a page"),
        (502, [1], errors.Internal, "1"),
        (503, {"error": {"message": "bye", "code": "draining"}}, errors.Draining, "bye"),
    ],
)
async def test_refusals(
    foreign: Foreign, foreign_url: str, status: int, body: Any, kind: type[Exception], message: str
) -> None:
    foreign.status, foreign.body = status, json.dumps(body)
    target = await OpenAiTarget.connect(openai_settings(foreign_url, model="m"), seed=1)
    with pytest.raises(errors.BatonError, match=message) as caught:
        await events_of(target)
    assert type(caught.value) is kind
    await target.close()


async def test_streams_that_break(foreign: Foreign, foreign_url: str) -> None:
    target = await OpenAiTarget.connect(openai_settings(foreign_url, model="m"), seed=1)
    foreign.events(text("a"), done=False)
    with pytest.raises(errors.Unavailable, match=r"without \[DONE\]"):
        await events_of(target)
    foreign.events(text("a"), {"error": {"message": "lost it", "code": "unavailable"}})
    with pytest.raises(errors.Unavailable, match="lost it"):
        await events_of(target)
    foreign.body = "data: {oops\n\n"
    with pytest.raises(errors.IncompatiblePeer, match="oops"):
        await events_of(target)
    await target.close()


@pytest.mark.parametrize("body", ["", "[]", '{"data": []}', '{"data": [{}]}', "null"])
async def test_a_server_without_models(foreign: Foreign, foreign_url: str, body: str) -> None:
    foreign.body = body
    with pytest.raises(errors.IncompatiblePeer, match="lists no models"):
        await OpenAiTarget.connect(openai_settings(foreign_url), seed=1)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://127.0.0.1:1/v1", errors.Unavailable),
        ("nowhere", errors.InvalidArgument),
        ("http://127.0.0.1:port/v1", errors.InvalidArgument),
        ("ftp://127.0.0.1/v1", errors.InvalidArgument),
    ],
)
async def test_addresses_that_are_none(url: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        await OpenAiTarget.connect(openai_settings(url), seed=1)
