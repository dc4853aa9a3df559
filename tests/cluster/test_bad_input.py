"""Whatever is wrong with what a client sends, it is told which field, nothing is started, and the server
serves on: over gRPC and over HTTP, from wrong values to bytes that are no request at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.errors import BatonError, InvalidArgument, Overloaded, UnknownModel
from baton.rpc.channel import channel
from baton.rpc.status import from_rpc_error
from baton.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.cluster.watching import WITHIN_S, eventually, router_load, settled

GENERATE = "/baton.v1.Inference/Generate"
MIB = 2**20
NAN, INFINITY = float("nan"), float("inf")

# Wrong over gRPC: fields of GenerateRequest and of its sampling, and the field that is named.
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no prompt": ({}, {}, "prompt"),
    "empty text": ({"text": ""}, {}, "text"),
    "no token ids": ({"token_ids": []}, {}, "token_ids"),
    "no messages": ({"chat": []}, {}, "chat.messages"),
    "no role": ({"chat": [("", "hi")]}, {}, "chat.messages[0].role"),
    "text too long": ({"text": "x" * 5000}, {}, "text"),
    "too many token ids": ({"token_ids": [1] * 4096}, {}, "token_ids"),
    "foreign token id": ({"token_ids": [1, 320]}, {}, "token_ids"),
    "huge token id": ({"token_ids": [2**32 - 1]}, {}, "token_ids"),
    "unknown model": ({"text": "x", "model": "gpt-5"}, {}, "model"),
    "max_tokens zero": ({"text": "x"}, {"max_tokens": 0}, "sampling.max_tokens"),
    "max_tokens negative": ({"text": "x"}, {"max_tokens": -1}, "sampling.max_tokens"),
    "max_tokens too many": ({"text": "x"}, {"max_tokens": 4096}, "sampling.max_tokens"),
    "min_tokens negative": ({"text": "x"}, {"min_tokens": -3}, "sampling.min_tokens"),
    "min above max": ({"text": "x"}, {"min_tokens": 5, "max_tokens": 4}, "sampling.min_tokens"),
    "temperature negative": ({"text": "x"}, {"temperature": -0.1}, "sampling.temperature"),
    "temperature NaN": ({"text": "x"}, {"temperature": NAN}, "sampling.temperature"),
    "temperature infinite": ({"text": "x"}, {"temperature": INFINITY}, "sampling.temperature"),
    "top_k": ({"text": "x"}, {"top_k": -2}, "sampling.top_k"),
    "top_p zero": ({"text": "x"}, {"top_p": 0.0}, "sampling.top_p"),
    "top_p NaN": ({"text": "x"}, {"top_p": NAN}, "sampling.top_p"),
    "min_p": ({"text": "x"}, {"min_p": 1.5}, "sampling.min_p"),
    "min_p NaN": ({"text": "x"}, {"min_p": NAN}, "sampling.min_p"),
    "repetition": ({"text": "x"}, {"repetition_penalty": 0.0}, "sampling.repetition_penalty"),
    "frequency": ({"text": "x"}, {"frequency_penalty": NAN}, "sampling.frequency_penalty"),
    "presence": ({"text": "x"}, {"presence_penalty": -2.5}, "sampling.presence_penalty"),
    "bias NaN": ({"text": "x"}, {"logit_bias": {3: NAN}}, "sampling.logit_bias[3]"),
    "bias of nothing": ({"text": "x"}, {"logit_bias": {320: 1.0}}, "sampling.logit_bias"),
    "empty stop": ({"text": "x"}, {"stop": ["a", ""]}, "sampling.stop[1]"),
    "many stops": ({"text": "x"}, {"stop": ["a"] * 17}, "sampling.stop"),
    "foreign stop token": ({"text": "x"}, {"stop_token_ids": [320]}, "sampling.stop_token_ids"),
    "n zero": ({"text": "x"}, {"n": 0}, "sampling.n"),
    "n negative": ({"text": "x"}, {"n": -1}, "sampling.n"),
    "n huge": ({"text": "x"}, {"n": 2**31 - 1}, "sampling.n"),
    "logprobs": ({"text": "x"}, {"logprobs": 21}, "sampling.logprobs"),
    "prompt_logprobs": ({"text": "x"}, {"prompt_logprobs": -1}, "sampling.prompt_logprobs"),
    "continues more samples": ({"text": "x", "output": [[1], [2]]}, {}, "output_token_ids"),
    "continues less samples": ({"text": "x", "output": [[1]]}, {"n": 2}, "output_token_ids"),
    "continues past its end": (
        {"text": "x", "output": [[1, 2, 3]]},
        {"max_tokens": 2},
        "output_token_ids[0]",
    ),
    "continues foreign token": ({"text": "x", "output": [[320]]}, {}, "output_token_ids[0]"),
    "continues prompt_logprobs": (
        {"text": "x", "output": [[1]]},
        {"prompt_logprobs": 0},
        "sampling.prompt_logprobs",
    ),
}

# Wrong over HTTP: of a completion's body, and the `param` that is named.
WRONG_BODIES: dict[str, tuple[Mapping[str, Any], str]] = {
    "no prompt": ({}, "prompt"),
    "empty prompt": ({"prompt": ""}, "prompt"),
    "empty tokens": ({"prompt": []}, "prompt"),
    "too long": ({"prompt": "x" * 5000}, "prompt"),
    "foreign token": ({"prompt": [320]}, "prompt"),
    "negative token": ({"prompt": [-1]}, "prompt"),
    "token beyond 64 bits": ({"prompt": [2**80]}, "prompt"),
    "mixed": ({"prompt": ["a", 1]}, "prompt[1]"),
    "lone surrogate": ({"prompt": "\ud800"}, "prompt"),
    "unknown model": ({"prompt": "x", "model": "gpt-5"}, "model"),
    "max_tokens": ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    "max_tokens beyond 64 bits": ({"prompt": "x", "max_tokens": 2**70}, "max_tokens"),
    "temperature": ({"prompt": "x", "temperature": -1}, "temperature"),
    "temperature NaN": ({"prompt": "x", "temperature": NAN}, "temperature"),
    "top_p infinite": ({"prompt": "x", "top_p": INFINITY}, "top_p"),
    "top_p zero": ({"prompt": "x", "top_p": 0}, "top_p"),
    "top_p huge": ({"prompt": "x", "top_p": 1e308}, "top_p"),
    "temperature huge": ({"prompt": "x", "temperature": 1e308}, "temperature"),
    "penalty tiny": ({"prompt": "x", "repetition_penalty": 1e-40}, "repetition_penalty"),
    "n of all memory": ({"prompt": "x", "n": 2**31, "best_of": 2**31}, "n"),
    "penalty NaN": ({"prompt": "x", "presence_penalty": NAN}, "presence_penalty"),
    "bias": ({"prompt": "x", "logit_bias": {"3": NAN}}, "logit_bias[3]"),
    "bias beyond 32 bits": ({"prompt": "x", "logit_bias": {"9999999999": 1}}, "logit_bias"),
    "n": ({"prompt": "x", "n": 0}, "n"),
    "best_of": ({"prompt": "x", "n": 2, "best_of": 3}, "best_of"),
    "logprobs": ({"prompt": "x", "logprobs": 21}, "logprobs"),
    "seed": ({"prompt": "x", "seed": 2**64}, "seed"),
    "stop": ({"prompt": "x", "stop": ""}, "stop[0]"),
    "stop token": ({"prompt": "x", "stop_token_ids": [-1]}, "stop_token_ids"),
    "min above max": ({"prompt": "x", "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    "options without stream": ({"prompt": "x", "stream_options": {}}, "stream_options"),
    "priority": ({"prompt": "x", "priority": 2**31}, "priority"),
    "unknown field": ({"prompt": "x", "temprature": 1}, "temprature"),
    "unsupported": ({"prompt": "x", "suffix": "y"}, "suffix"),
}


@pytest.fixture
async def client(served: LocalCluster) -> AsyncIterator[AsyncClient]:
    """Of a cluster that still serves after whatever the test did to it."""
    async with AsyncClient(served.address) as client:
        yield client
        good = await client.generate("good", max_tokens=3, ignore_eos=True, timeout_s=WITHIN_S)
        assert len(good.token_ids) == 3
    async with http_client(served) as http:
        answer = await http.post("/completions", json={"prompt": "good", "max_tokens": 3})
        assert answer.status_code == 200
    await settled(served.address)
    assert all(process.alive for process in served.processes())


@asynccontextmanager
async def http_client(cluster: LocalCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=cluster.base_url, trust_env=False, timeout=WITHIN_S
    ) as client:
        yield client


def generate_request(
    fields: Mapping[str, Any], sampling: Mapping[str, Any]
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(
        model=fields.get("model", ""), sampling=common_pb2.SamplingParams(**sampling)
    )
    if "text" in fields:
        request.text = fields["text"]
    if "token_ids" in fields:
        request.token_ids.CopyFrom(common_pb2.TokenIds(ids=fields["token_ids"]))
    if "chat" in fields:
        request.chat.SetInParent()
        for role, content in fields["chat"]:
            request.chat.messages.add(role=role, content=content)
    for ids in fields.get("output", ()):
        request.output_token_ids.add(ids=ids)
    return request


async def error_of(link: grpc.aio.Channel, data: bytes) -> BatonError:
    """The typed error that answers these bytes."""
    call: Any = cast(Any, link.unary_stream(GENERATE))(data, timeout=WITHIN_S)  # bytes as they are
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in call:
            pass
    return from_rpc_error(refused.value)


async def test_wrong_values_over_grpc(served: LocalCluster, client: AsyncClient) -> None:
    async with channel(served.address) as link:
        for name, (fields, sampling, named) in WRONG.items():
            data = generate_request(fields, sampling).SerializeToString()
            error = await error_of(link, data)
            assert isinstance(error, InvalidArgument), f"{name}: {error!r}"
            assert error.field == named, f"{name}: {error}"
            assert error.message
        unknown = generate_request({"text": "x", "model": "gpt-5"}, {}).SerializeToString()
        assert isinstance(await error_of(link, unknown), UnknownModel)


async def test_wrong_values_over_http(served: LocalCluster, client: AsyncClient) -> None:
    async with http_client(served) as http:
        for name, (body, named) in WRONG_BODIES.items():
            for stream in (False, True):
                if stream and "stream_options" in body:
                    continue
                sent = json.dumps({**body, "stream": stream})  # writes NaN and Infinity as they are
                answer = await http.post("/completions", content=sent)
                expected = 404 if named == "model" else 400
                assert answer.status_code == expected, f"{name}: {answer.text}"
                error = answer.json()["error"]
                assert error["param"] == named, f"{name}: {error}"
                assert error["type"] == "invalid_request_error"


async def test_invalid_utf8_over_grpc(served: LocalCluster, client: AsyncClient) -> None:
    """Bytes that the generated classes would not let through."""
    text, chat, model = 3, 5, 2
    bad = b"ok \xff\xfe"
    message = field(1, b"user") + field(2, bad)
    for data, named in (
        (field(text, bad), "text"),
        (field(model, bad) + field(text, b"x"), "model"),
        (field(chat, field(1, message)), "chat.messages[0].content"),
        (field(text, b"x") + field(4, b"\xff"), "message"),  # token ids cut off in the middle
        (b"\xff\xff\xff", "message"),
    ):
        async with channel(served.address) as link:
            error = await error_of(link, data)
        assert isinstance(error, InvalidArgument)
        assert error.field == named


def field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    assert len(data) < 128
    return bytes((number << 3 | 2, len(data))) + data


async def test_bodies_that_are_no_requests(served: LocalCluster, client: AsyncClient) -> None:
    async with http_client(served) as http:
        for content, named in (
            (b'{"prompt": "ok \xff\xfe"}', "body"),
            (b'{"prompt": "x"', "body"),
            (b"", "body"),
            (b"[]", "body"),
            (b"[" * 100_000, "body"),
            (b'{"prompt": "x", "n": ' + b"9" * 5000 + b"}", "body"),
            (b'{"prompt": "x", "prompt": "y"}', "prompt"),
        ):
            answer = await http.post("/completions", content=content)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == named
        assert (await http.get("/completions")).status_code == 405
        assert (await http.post("/nothing")).status_code == 404


async def test_messages_of_64_mib(served: LocalCluster, client: AsyncClient) -> None:
    huge = "x" * (64 * MIB)
    async with channel(served.address) as link:
        error = await error_of(link, generate_request({"text": huge}, {}).SerializeToString())
    assert isinstance(error, InvalidArgument)
    assert error.field == "message"
    async with http_client(served) as http:
        answer = await http.post("/completions", json={"prompt": huge})
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "body"


async def test_a_prompt_that_takes_long_to_tokenize(
    served: LocalCluster, client: AsyncClient
) -> None:
    """Megabytes are tokenized and refused; meanwhile others are served."""
    text = "and the thin " * (2 * MIB // 13)
    asking = asyncio.create_task(client.generate(text, max_tokens=1))
    while not asking.done():
        await client.generate("other", max_tokens=1, timeout_s=WITHIN_S)
    with pytest.raises(InvalidArgument) as refused:
        await asking
    assert refused.value.field == "text"


@pytest.fixture(scope="module")
def bounded(checkpoint: Path) -> Iterator[LocalCluster]:
    """Twenty streams run and a thousand wait."""
    with LocalCluster(
        str(checkpoint),
        worker_flags={"num_blocks": 256},
        router_flags={"max_waiting": 1000},
        environment={"BATON_ROUTER_ADMISSION_MAX_IN_FLIGHT_PER_POOL": "20"},
    ) as cluster:
        yield cluster


async def test_thousands_of_open_streams(bounded: LocalCluster) -> None:
    """What is beyond the bounds is refused at once with a time to come back; all others are held, and
    all places are free again when their clients have gone."""
    request = inference_pb2.GenerateRequest(
        text="x", sampling=common_pb2.SamplingParams(max_tokens=4000, ignore_eos=True)
    )
    async with channel(bounded.address) as link:
        stub = inference_pb2_grpc.InferenceStub(link)
        calls = [stub.Generate(request) for _ in range(3000)]
        refused = await eventually(
            lambda: asyncio.sleep(0, [call for call in calls if call.done()]),
            lambda done: len(done) >= 3000 - 1020,
        )
        load = await router_load(bounded.address)
        assert (load.num_running_requests, load.num_waiting_requests) == (20, 1000)
        assert len(refused) == 3000 - 1020
        for call in refused:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call.read()
            error = from_rpc_error(refusal.value)
            assert isinstance(error, Overloaded)
            assert error.retry_after_s > 0
        for call in calls:
            call.cancel()
    await settled(bounded.address)
    async with AsyncClient(bounded.address) as client:
        assert len((await client.generate("good", max_tokens=3, ignore_eos=True)).token_ids) == 3


async def test_bytes_that_are_no_http2(served: LocalCluster, client: AsyncClient) -> None:
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.grpc_port)
        writer.write(data)
        writer.write_eof()
        await asyncio.wait_for(read_all(reader), WITHIN_S)  # the server hangs up
        writer.close()


async def test_connections_that_say_little_or_nothing(
    served: LocalCluster, client: AsyncClient
) -> None:
    """They stay open in the middle of a request, on both ports, while others are served."""
    begun = (
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nHost: baton\r\nContent-Length: 1000\r\n\r\n{",
    )
    connections = [
        await asyncio.open_connection("127.0.0.1", port)
        for port in (served.http_port, served.grpc_port)
        for _ in range(100)
    ]
    for number, (_, writer) in enumerate(connections):
        writer.write(begun[number % len(begun)])
        await writer.drain()
    async with http_client(served) as http:
        for _ in range(5):
            answer = await http.post("/completions", json={"prompt": "x", "max_tokens": 2})
            assert answer.status_code == 200
    assert (await client.generate("x", max_tokens=2)).token_ids
    for _, writer in connections:
        writer.close()


async def test_garbage_over_http(served: LocalCluster, client: AsyncClient) -> None:
    for data in (
        b"\x00\xff" * 100 + b"\r\n\r\n",
        b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"\r\n" * 50,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
        writer.write(data)
        writer.write_eof()
        answer = await asyncio.wait_for(read_all(reader), WITHIN_S)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
        writer.close()


async def read_all(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:  # hanging up on unread bytes looks so
        return b""
