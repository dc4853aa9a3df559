"""The official `openai` client, unchanged, against the app in a real uvicorn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Receive, Scope, Send

from baton.errors import InvalidArgument, Overloaded, Unavailable
from router.http.app import create_app
from router.http.server import HttpServer
from router.request import Chat, Message, SamplingInput
from tests.fakes import FakeFrontend

# One server for all tests of this file, one app for each.
pytestmark = pytest.mark.asyncio(loop_scope="module")


class CurrentApp:
    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[tuple[CurrentApp, str]]:
    current = CurrentApp()
    server = await HttpServer.start(current, "127.0.0.1", 0)
    yield current, f"http://127.0.0.1:{server.port}/v1"
    await server.stop()


@pytest.fixture
def frontend() -> FakeFrontend:
    return FakeFrontend()


@pytest_asyncio.fixture(loop_scope="module")
async def client(
    server: tuple[CurrentApp, str], frontend: FakeFrontend
) -> AsyncIterator[openai.AsyncOpenAI]:
    current, url = server
    current.app = create_app(frontend, CollectorRegistry())
    async with openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0) as client:
        yield client


async def test_chat(client: openai.AsyncOpenAI, frontend: FakeFrontend) -> None:
    answer = await client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "name": "bot"},
        ],
        n=2,
        max_completion_tokens=3,
        temperature=0.5,
        seed=-1,
        stop="END",
        logit_bias={"5": -100},
        extra_body={"top_k": 7, "min_p": 0.1, "ignore_eos": True, "priority": 3},
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello world"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "tiny"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)
    assert answer.usage.total_tokens == 8
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    (request,) = frontend.requests
    assert request.prompt == Chat(
        (Message("developer", "be kind"), Message("user", "a\nb"), Message("assistant", "c", "bot"))
    )
    assert request.sampling == SamplingInput(
        max_tokens=3,
        temperature=0.5,
        seed=2**64 - 1,
        stop=("END",),
        logit_bias={5: -100.0},
        n=2,
        top_k=7,
        min_p=0.1,
        ignore_eos=True,
    )
    assert request.priority == 3


async def test_chat_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )
    texts = {0: "", 1: ""}
    finishes: dict[int, str] = {}
    roles: list[str | None] = []
    usages = []
    async for chunk in stream:
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert texts == {0: "Hello world", 1: "Hello world"}
    assert finishes == {0: "length", 1: "length"}
    assert roles == ["assistant", "assistant"]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] is not None
    assert usages[-1].completion_tokens == 6


async def test_chat_logprobs(client: openai.AsyncOpenAI, frontend: FakeFrontend) -> None:
    frontend.pieces = ("Hé",)
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], logprobs=True, top_logprobs=2
    )
    assert frontend.requests[0].sampling.logprobs == 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (position,) = logprobs.content
    assert (position.token, position.logprob) == ("Hé", -0.5)
    assert position.bytes == list("Hé".encode())
    assert [(top.token, top.logprob) for top in position.top_logprobs] == [
        ("Hé", -0.5),
        ("bytes:\\xf0\\x9f", -9999.0),
    ]


async def test_chat_stream_logprobs(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], logprobs=True, stream=True
    )
    tokens = [
        position.token
        async for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for position in choice.logprobs.content or []
    ]
    assert tokens == ["Hello", " ", "world"]


async def test_completion_logprobs(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model="tiny", prompt="x", logprobs=1)
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hello", " ", "world"]
    assert logprobs.text_offset == [0, 5, 6]
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"Hello": -0.5, "bytes:\\xf0\\x9f": -9999.0}
    stream = await client.completions.create(model="tiny", prompt="x", logprobs=1, stream=True)
    offsets = [
        offset
        async for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for offset in choice.logprobs.text_offset or []
    ]
    assert offsets == [0, 5, 6]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hi", ["hi"]),
        (["hi", "ho"], ["hi", "ho"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_every_kind_of_prompt(
    client: openai.AsyncOpenAI,
    frontend: FakeFrontend,
    prompt: str | list[str] | list[int] | list[list[int]],
    prompts: list[str | tuple[int, ...]],
) -> None:
    answer = await client.completions.create(model="tiny", prompt=prompt, n=2, best_of=2)
    assert [request.prompt for request in frontend.requests] == prompts
    assert [choice.index for choice in answer.choices] == list(range(2 * len(prompts)))
    assert {choice.text for choice in answer.choices} == {"Hello world"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6 * len(prompts)


async def test_completion_stream_of_several_prompts(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
    )
    texts = {0: "", 1: ""}
    usage = None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "Hello world", 1: "Hello world"}
    assert usage is not None
    assert usage.total_tokens == 10


async def test_what_vllm_adds_is_returned(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="tiny",
        prompt="x",
        stop=["END"],
        extra_body={"return_token_ids": True, "prompt_logprobs": 1},
    )
    extra = answer.choices[0].model_extra
    assert extra is not None
    assert (extra["token_ids"], extra["stop_reason"]) == ([0, 1, 2], "END")
    first, second = extra["prompt_logprobs"]
    assert first is None
    assert second["1"] == {"logprob": -0.5, "rank": 1, "decoded_token": " "}
    assert answer.model_extra is not None
    assert answer.model_extra["timeline"]["prefill_worker"] == "p0"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny", "org/other"]
    model = await client.models.retrieve("org/other")
    assert (model.id, model.created) == ("org/other", 8)
    with pytest.raises(openai.NotFoundError, match="no model 'gone'"):
        await client.models.retrieve("gone")


async def test_errors_are_the_clients_own(
    client: openai.AsyncOpenAI, frontend: FakeFrontend
) -> None:
    frontend.error = InvalidArgument("must be above 0", field="sampling.top_p")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.completions.create(model="tiny", prompt="x")
    assert (bad.value.param, bad.value.code) == ("top_p", "invalid_argument")
    frontend.error = Overloaded("full", retry_after_s=3)
    with pytest.raises(openai.RateLimitError) as limit:
        await client.completions.create(model="tiny", prompt="x", stream=True)
    assert limit.value.response.headers["retry-after"] == "3"
    frontend.error, frontend.error_at = Unavailable("lost"), 1
    stream = await client.completions.create(model="tiny", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="lost"):
        async for _ in stream:
            pass


async def test_a_stream_that_the_client_closes_is_closed(
    client: openai.AsyncOpenAI, frontend: FakeFrontend
) -> None:
    frontend.hang_at = 1
    stream = await client.completions.create(model="tiny", prompt="x", stream=True)
    assert (await anext(aiter(stream))).choices[0].text == "Hello"
    await frontend.reached.wait()
    await stream.close()
    async with asyncio.timeout(10):
        await frontend.closed.acquire()
