"""The OpenAI face as a plain HTTP client sees it, over a real uvicorn: errors, limits,
cancellation."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from baton.errors import (
    ConfigError,
    ContextLengthExceeded,
    Draining,
    InvalidArgument,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from router.http import json_answer
from router.http.app import create_app
from router.http.body import MAX_BODY_BYTES, read_json_object
from router.http.server import HttpServer
from tests.fakes import FakeFrontend

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


@pytest.fixture
def frontend() -> FakeFrontend:
    return FakeFrontend()


@pytest.fixture
async def app_client(frontend: FakeFrontend) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(frontend, CollectorRegistry()))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as client:
        yield client


@pytest.fixture
async def http(frontend: FakeFrontend) -> AsyncIterator[httpx.AsyncClient]:
    registry = CollectorRegistry()
    Counter("baton_things", "what was counted", registry=registry).inc()
    server = await HttpServer.start(create_app(frontend, registry), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        yield client
    await server.stop()


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temprature": 1}, "temprature"),
        ({"\ud800": 1}, "\\ud800"),
        ({"metadata": {}, "a\udfffb": []}, "a\\udfffb"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop[1]"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "much"}}, "logit_bias.1"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"priority": 2**31}, "priority"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"),
    ],
)
async def test_a_wrong_chat_body_is_refused_by_field(
    app_client: httpx.AsyncClient, frontend: FakeFrontend, change: dict[str, Any], param: str
) -> None:
    response = await app_client.post("/v1/chat/completions", content=json.dumps(CHAT | change))
    error = error_of(response, 400)
    assert error["param"] == param
    assert error["code"] == "invalid_argument"
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{param}: ")
    assert frontend.requests == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt[1]"),
        ({"prompt": [[1], "a"]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2**62, "best_of": 2**62}, "n"),  # as a length it would take all memory
        ({"prompt": ["a"] * 128, "n": 9}, "n"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_a_wrong_completion_body_is_refused_by_field(
    app_client: httpx.AsyncClient, frontend: FakeFrontend, change: dict[str, Any], param: str
) -> None:
    response = await app_client.post("/v1/completions", json=COMPLETION | change)
    assert error_of(response, 400)["param"] == param
    assert frontend.requests == []


@pytest.mark.parametrize(
    ("content", "param", "message"),
    [
        (b"", "body", "not valid JSON"),
        (b"{", "body", "not valid JSON"),
        (b"[]", "body", "must be a JSON object"),
        (b'{"prompt": "\xff"}', "body", "not valid UTF-8 at byte 12"),
        (b'{"prompt": "a", "prompt": "b"}', "prompt", "twice"),
        (b'{"prompt": "a", "n": NaN}', "n", "must be an integer"),
        (b'{"prompt": ' + b"[" * 100_000, "body", "nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "body", "not valid JSON"),
    ],
)
async def test_a_malformed_body_is_refused(
    app_client: httpx.AsyncClient, content: bytes, param: str, message: str
) -> None:
    error = error_of(await app_client.post("/v1/completions", content=content), 400)
    assert error["param"] == param
    assert message in error["message"]


async def test_nan_is_refused_by_its_field(
    app_client: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    body = '{"prompt": "a", "temperature": NaN}'
    response = await app_client.post("/v1/completions", content=body)
    assert error_of(response, 400)["param"] == "temperature"
    assert frontend.requests == []


async def test_a_body_of_64_mib_is_refused_and_the_server_serves_on(
    http: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    body = b'{"prompt": "' + b"x" * (64 * 2**20) + b'"}'
    error = error_of(await http.post("/v1/completions", content=body), 413)
    assert (error["param"], error["code"]) == ("body", "invalid_argument")
    assert str(MAX_BODY_BYTES) in error["message"]
    assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200
    assert len(frontend.requests) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("raised", "status", "type_", "retry_after"),
    [
        (InvalidArgument("bad", field="sampling.top_p"), 400, "invalid_request_error", None),
        (Overloaded("full", retry_after_s=1.2), 429, "rate_limit_error", "2"),
        (Unavailable("none", retry_after_s=0.4), 503, "server_error", "1"),
        (Draining("leaving"), 503, "server_error", None),
        (ContextLengthExceeded("long", field="sampling.top_p"), 400, "invalid_request_error", None),
        (UnknownModel("which?"), 404, "invalid_request_error", None),
    ],
)
async def test_a_refusal_has_its_own_status_also_for_a_stream(
    app_client: httpx.AsyncClient,
    frontend: FakeFrontend,
    raised: InvalidArgument,
    status: int,
    type_: str,
    retry_after: str | None,
    stream: bool,
) -> None:
    frontend.error = raised
    for frontend.error_at in (-1, 0):  # refused; failed before the first token
        response = await app_client.post("/v1/completions", json=COMPLETION | {"stream": stream})
        error = error_of(response, status)
        assert (error["type"], error["code"]) == (type_, raised.code)
        assert response.headers.get("retry-after") == retry_after
        assert error["param"] == ("top_p" if raised.field else None)


async def test_an_error_within_a_stream_is_its_last_event(
    http: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    frontend.error, frontend.error_at = Unavailable("the worker was lost"), 2
    response = await http.post("/v1/completions", json=COMPLETION | {"stream": True})
    assert response.status_code == 200
    *chunks, last = events_of(response)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hello", " "]
    assert last["error"]["code"] == "unavailable"
    assert "[DONE]" not in response.text


async def test_a_defect_is_a_typed_error_and_the_server_serves_on(
    http: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    frontend.error, frontend.error_at = RuntimeError("secret"), 1
    for stream in (False, True):
        response = await http.post("/v1/completions", json=COMPLETION | {"stream": stream})
        error = events_of(response)[-1]["error"] if stream else error_of(response, 500)
        assert error["code"] == "internal"
        assert "secret" not in response.text
    frontend.error = None
    assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hang_at", [0, 2])
async def test_a_disconnect_closes_the_request(
    http: httpx.AsyncClient, frontend: FakeFrontend, stream: bool, hang_at: int
) -> None:
    frontend.hang_at = hang_at
    body = COMPLETION | {"stream": stream}
    call = asyncio.create_task(http.post("/v1/completions", json=body))
    await frontend.reached.wait()
    assert frontend.closed.locked()
    call.cancel()
    await asyncio.wait([call])
    await wait_until_closed(frontend, 1)


async def test_a_disconnect_closes_every_prompt(
    http: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    frontend.hang_at = 1
    call = asyncio.create_task(http.post("/v1/completions", json={"prompt": ["a", "b", "c"]}))
    await frontend.reached.wait()
    call.cancel()
    await asyncio.wait([call])
    await wait_until_closed(frontend, 3)


async def test_one_prompts_error_ends_the_call(
    http: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    frontend.error, frontend.error_at = Overloaded("full"), 1
    response = await http.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    error_of(response, 429)
    assert len(frontend.requests) == 3


async def wait_until_closed(frontend: FakeFrontend, num_requests: int) -> None:
    async with asyncio.timeout(10):
        for _ in range(num_requests):
            await frontend.closed.acquire()
    assert frontend.closed.locked()  # and no more


async def test_health_says_whether_a_worker_can_serve(
    app_client: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    assert (await app_client.get("/health")).status_code == 200
    frontend.serving = False
    assert error_of(await app_client.get("/health"), 503)["code"] == "unavailable"


async def test_metrics_shows_the_registry(http: httpx.AsyncClient) -> None:
    response = await http.get("/metrics")
    assert "baton_things_total 1.0" in response.text
    assert response.headers["content-type"].startswith("text/plain")


async def test_an_unknown_path_or_method_has_an_openai_error(app_client: httpx.AsyncClient) -> None:
    assert error_of(await app_client.get("/v1/nothing"), 404)["code"] == "not_found"
    response = await app_client.get("/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


async def test_the_request_id_is_kept_or_made(
    app_client: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    headers = {"X-Request-Id": "mine-1", "X-Baton-Tenant": "acme"}
    response = await app_client.post("/v1/completions", json=COMPLETION, headers=headers)
    assert response.headers["x-request-id"] == frontend.requests[0].request_id == "mine-1"
    assert frontend.requests[0].tenant == "acme"
    response = await app_client.post("/v1/completions", json=COMPLETION)
    assert response.headers["x-request-id"] == frontend.requests[1].request_id


@pytest.mark.parametrize(
    ("own", "used"),
    [("a/7", "a_7"), ("uuid#1", "uuid_1"), ("Root=1-\xe9", "Root_1-_"), ("x" * 500, "x" * 120)],
)
async def test_a_request_id_of_another_kind_is_made_usable_and_given_back(
    app_client: httpx.AsyncClient, frontend: FakeFrontend, own: str, used: str
) -> None:
    for prompt in ("hi", ["hi", "ho"]):
        response = await app_client.post(
            "/v1/completions",
            json=COMPLETION | {"prompt": prompt},
            headers={b"X-Request-Id": own.encode("latin-1")},
        )
        assert response.status_code == 200
        assert response.headers.raw[-1] == (b"x-request-id", own.encode("latin-1"))
        assert response.json()["id"] == f"cmpl-{used}"
    assert [r.request_id for r in frontend.requests] == [used, f"{used}-0", f"{used}-1"]


async def test_fields_that_change_nothing_are_ignored(
    app_client: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    body = CHAT | {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logit_bias": None,
        "stop": None,
        "anything": None,
    }
    assert (await app_client.post("/v1/chat/completions", json=body)).status_code == 200
    assert frontend.requests[0].sampling.stop == ()


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.text.split("\n\n") if line and line != "data: [DONE]"]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_port_in_use_is_a_config_error(http: httpx.AsyncClient) -> None:
    app = create_app(FakeFrontend(), CollectorRegistry())
    with pytest.raises(ConfigError, match="Address already in use") as caught:
        await HttpServer.start(app, "127.0.0.1", http.base_url.port or 0)
    assert caught.value.field == "http_port"


async def test_a_long_body_is_read_off_the_event_loop(
    app_client: httpx.AsyncClient, frontend: FakeFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def watched(*arguments: Any) -> dict[str, Any]:
        threads.append(threading.get_ident())
        return read_json_object(*arguments)

    monkeypatch.setattr("router.http.app.read_json_object", watched)
    here = threading.get_ident()
    for prompt in ("a", "a" * 5_000, [1] * 5_000):
        await app_client.post("/v1/completions", json=COMPLETION | {"prompt": prompt})
    assert [thread == here for thread in threads] == [True, False, False]
    assert frontend.requests[2].prompt == (1,) * 5_000
    crowd = {"messages": [{"role": "user", "content": ""}] * 10_000}
    response = await app_client.post("/v1/chat/completions", json=crowd)
    assert "more than 4096 entries" in error_of(response, 400)["message"]


async def test_a_long_answer_is_written_off_the_event_loop(
    app_client: httpx.AsyncClient, frontend: FakeFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def watched(value: Any) -> bytes:
        threads.append(threading.get_ident())
        return write(value)

    write = json_answer.write
    monkeypatch.setattr("router.http.answer.json_answer.write", watched)
    short = await app_client.post("/v1/completions", json=COMPLETION)
    frontend.pieces = ("word ",) * 5_000
    long = await app_client.post("/v1/completions", json=COMPLETION)
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [True, False]
    assert short.headers["content-type"] == long.headers["content-type"] == "application/json"
    assert long.json()["choices"][0]["text"] == "word " * 5_000


async def test_a_slash_at_the_end_changes_nothing(app_client: httpx.AsyncClient) -> None:
    listed = await app_client.get("/v1/models/")
    assert [card["id"] for card in listed.json()["data"]] == ["tiny", "org/other"]
    assert (await app_client.get("/v1/models/org/other/")).json()["id"] == "org/other"
    assert (await app_client.get("/health/")).status_code == 200
    for path, body in (("completions", COMPLETION), ("chat/completions", CHAT)):
        assert (await app_client.post(f"/v1/{path}/", json=body)).status_code == 200
    error = error_of(await app_client.get("/v1/models/none"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_name_tokens_of_the_one_model_that_is_served(
    app_client: httpx.AsyncClient, stream: bool
) -> None:
    body = {"prompt": "hi", "logprobs": 1, "stream": stream}
    response = await app_client.post("/v1/completions", json=body)
    answers = events_of(response) if stream else [response.json()]
    tokens = [token for each in answers for token in each["choices"][0]["logprobs"]["tokens"]]
    assert tokens == ["Hello", " ", "world"]


async def test_log_probabilities_of_a_prompt_that_come_in_several_messages_are_one_list(
    app_client: httpx.AsyncClient, frontend: FakeFrontend
) -> None:
    frontend.num_prompt_messages = 3
    response = await app_client.post("/v1/completions", json=COMPLETION | {"prompt_logprobs": 0})
    first, *others = response.json()["choices"][0]["prompt_logprobs"]
    assert first is None
    assert len(others) == 3
