"""The clients that people have, unchanged, against a cluster of real processes: OpenAI's, gRPC with
nothing but reflection, Prometheus, and Baton's own command line. All faces give the same answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import httpx
import openai
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from openai.types.chat import ChatCompletionMessageParam

from baton import AsyncClient
from baton.client.results import Generation
from baton.cluster.local import LocalCluster
from tests.cluster.watching import WITHIN_S, eventually, settled

MODEL = "small"
PROMPT = "the thin man and the "
MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "and then?"},
]


@pytest.fixture
async def ai(served: LocalCluster) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=served.base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def client(served: LocalCluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(served.address) as client:
        yield client


async def over_grpc(client: AsyncClient, **options: Any) -> Generation:
    return await client.generate(PROMPT, max_tokens=20, ignore_eos=True, **options)


# OpenAI's client


async def test_openai_models(ai: openai.AsyncOpenAI) -> None:
    [model] = [model async for model in ai.models.list()]
    assert model.id == MODEL
    assert (await ai.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("gpt-5")


async def test_openai_completions(ai: openai.AsyncOpenAI, client: AsyncClient) -> None:
    reference = await over_grpc(client, temperature=1.0, seed=3, n=3, logprobs=2)
    answer = await ai.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=20,
        seed=3,
        n=3,
        logprobs=2,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert [choice.text for choice in answer.choices] == [s.text for s in reference.samples]
    assert len({choice.text for choice in answer.choices}) == 3
    for choice, sample in zip(answer.choices, reference.samples, strict=True):
        assert choice.finish_reason == "length"
        assert choice.logprobs is not None
        expected = [position.logprob for position in sample.logprobs]
        assert choice.logprobs.token_logprobs == pytest.approx(expected)
        assert cast(Any, choice).token_ids == list(sample.token_ids)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 60
    assert answer.usage.prompt_tokens == reference.usage.num_prompt_tokens


async def test_openai_stop(ai: openai.AsyncOpenAI, client: AsyncClient) -> None:
    whole = (await over_grpc(client, temperature=0.0)).text
    stop = whole[7:9]
    asked: dict[str, Any] = {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": 20,
        "temperature": 0,
        "stop": [stop, "never"],
        "extra_body": {"ignore_eos": True},
    }
    answer = await ai.completions.create(**asked)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = [chunk async for chunk in await ai.completions.create(**asked, stream=True)]
    streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert streamed == answer.choices[0].text


async def test_openai_chat_whole_and_streamed(ai: openai.AsyncOpenAI, client: AsyncClient) -> None:
    reference = await client.generate(
        [cast(Any, message) for message in MESSAGES],
        max_tokens=20,
        seed=5,
        n=2,
        temperature=1.0,
        logprobs=1,
        ignore_eos=True,
    )
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": MESSAGES,
        "max_completion_tokens": 20,
        "seed": 5,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 1,
        "extra_body": {"ignore_eos": True},
    }
    texts = [sample.text for sample in reference.samples]
    answer = await ai.chat.completions.create(**asked)
    assert [choice.message.content for choice in answer.choices] == texts
    streamed = ["", ""]
    num_logprobs = [0, 0]
    usage = None
    stream = await ai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            if choice.logprobs is not None:
                num_logprobs[choice.index] += len(choice.logprobs.content or ())
    assert streamed == texts
    assert num_logprobs == [20, 20]
    assert usage is not None
    assert usage.completion_tokens == 40


async def test_openai_errors(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await ai.completions.create(model="gpt-5", prompt="x")
    with pytest.raises(openai.BadRequestError) as refused:
        await ai.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert refused.value.param == "temperature"


async def test_openai_stream_left_early(ai: openai.AsyncOpenAI, served: LocalCluster) -> None:
    stream = await ai.completions.create(
        model=MODEL, prompt="x", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    async for _ in stream:
        break
    await stream.close()
    await settled(served.address)


# grpcurl's protocol: nothing is known but what the server tells


class Reflected:
    """Descriptors from ServerReflection v1alpha, and calls made with nothing else."""

    def __init__(self, link: grpc.aio.Channel) -> None:
        self._link = link
        self._pool = descriptor_pool.DescriptorPool()

    async def ask(self, **question: str) -> Any:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(self._link)  # type: ignore[arg-type]
        call = stub.ServerReflectionInfo(timeout=WITHIN_S)
        await call.write(cast(Any, reflection_pb2).ServerReflectionRequest(**question))
        await call.done_writing()
        return await call.read()

    async def services(self) -> set[str]:
        answer = await self.ask(list_services="")
        return {service.name for service in answer.list_services_response.service}

    async def method(self, service: str, name: str) -> MethodDescriptor:
        """Fetches the file of a service and, as grpcurl does, whatever that depends on."""
        answer = await self.ask(file_containing_symbol=service)
        await self._add(answer)
        descriptor = self._pool.FindServiceByName(service)
        return descriptor.FindMethodByName(name)

    async def _add(self, answer: Any) -> None:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            for dependency in file.dependency:
                try:
                    self._pool.FindFileByName(dependency)
                except KeyError:
                    await self._add(await self.ask(file_by_filename=dependency))
            self._pool.Add(file)

    async def call(self, service: str, name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        """JSON in, JSON out, as on grpcurl's command line."""
        method = await self.method(service, name)
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        kind = self._link.unary_stream if method.server_streaming else self._link.unary_unary
        call = cast(Any, kind)(
            f"/{service}/{name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )(json_format.ParseDict(request, request_class()), timeout=WITHIN_S)
        answers = [each async for each in call] if method.server_streaming else [await call]
        return [json_format.MessageToDict(each) for each in answers]


async def test_reflection_is_enough(served: LocalCluster, client: AsyncClient) -> None:
    reference = await over_grpc(client, temperature=0.0)
    async with grpc.aio.insecure_channel(served.address) as link:
        reflected = Reflected(link)
        services = await reflected.services()
        assert {
            "baton.v1.Inference",
            "baton.v1.Admin",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        } <= services
        for service in services:  # every service that is told of can be described
            answer = await reflected.ask(file_containing_symbol=service)
            assert answer.WhichOneof("message_response") == "file_descriptor_response", service
        answers = await reflected.call(
            "baton.v1.Inference",
            "Generate",
            {
                "text": PROMPT,
                "sampling": {"maxTokens": 20, "temperature": 0, "ignoreEos": True},
            },
        )
        deltas = [delta for answer in answers for delta in answer.get("deltas", ())]
        assert "".join(delta.get("text", "") for delta in deltas) == reference.text
        assert deltas[-1]["finishReason"] == "FINISH_REASON_LENGTH"
        assert answers[-1]["usage"]["numOutputTokens"] == 20
        [models] = await reflected.call("baton.v1.Inference", "ListModels", {})
        assert [model["name"] for model in models["models"]] == [MODEL]
        [workers] = await reflected.call("baton.v1.Admin", "ListWorkers", {})
        assert [worker["info"]["workerId"] for worker in workers["workers"]] == ["worker-0"]


async def test_health_of_router_and_worker(served: LocalCluster, client: AsyncClient) -> None:
    [worker] = await client.workers()
    for address, services in (
        (served.address, ("", "baton.v1.Inference")),
        (worker.info.address, ("", "baton.v1.Decode", "baton.v1.Worker")),
    ):
        async with grpc.aio.insecure_channel(address) as link:
            stub: Any = health_pb2_grpc.HealthStub(link)
            for service in services:
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


# Metrics


async def scrape(served: LocalCluster) -> dict[str, float]:
    """Every sample by name and labels."""
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{served.http_port}/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def test_metrics_count_what_happens(served: LocalCluster, client: AsyncClient) -> None:
    names = [
        f'vllm:{name}{{model_name="small",pool="worker-0"}}'
        for name in ("num_requests_running", "kv_cache_usage_perc", "num_requests_waiting")
    ]
    before = await eventually(
        lambda: scrape(served), lambda seen: all(seen[name] == 0 for name in names)
    )
    async with client.stream("x", max_tokens=4000, ignore_eos=True) as stream:
        await anext(stream)
        running = await eventually(lambda: scrape(served), lambda seen: seen[names[0]] == 1)
        assert running['baton_requests_in_flight{model_name="small"}'] == 1
        assert running[names[1]] > 0
    await settled(served.address)
    answer = await over_grpc(client)
    after = await scrape(served)

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert gained('baton_requests_total{state="cancelled"}') == 1
    assert gained('baton_requests_total{state="length"}') == 1
    assert gained("baton_output_tokens_total") > 20
    assert gained("baton_prompt_tokens_total") == answer.usage.num_prompt_tokens + 1
    for latency in ("ttft", "itl", "e2e"):
        assert gained(f"baton_{latency}_seconds_count") == 1
        assert gained(f"baton_{latency}_seconds_sum") > 0
    blocks = [value for name, value in after.items() if name.startswith("baton_kv_blocks{")]
    assert sum(blocks) == 256


# The command line


def baton(*words: str) -> dict[str, Any]:
    """The JSON object that a command ends with."""
    result = subprocess.run(
        [sys.executable, "-m", "baton.cli.main", *words, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    shown: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return shown


async def test_baton_generate(served: LocalCluster, client: AsyncClient) -> None:
    reference = await over_grpc(client, temperature=0.0)
    shown = await asyncio.to_thread(
        baton,
        *("generate", PROMPT, "--address", served.address),
        *("--max-tokens", "20", "--temperature", "0", "--ignore-eos"),
    )
    assert {"text", "token_ids", "finish_reason", "usage", "timeline"} <= set(shown)
    assert shown["text"] == reference.text
    assert shown["token_ids"] == list(reference.token_ids)
    assert shown["finish_reason"] == "length"
    assert shown["usage"]["num_output_tokens"] == 20


async def test_baton_status(served: LocalCluster, client: AsyncClient) -> None:
    await over_grpc(client)
    shown = await asyncio.to_thread(baton, "status", "--requests", "--address", served.address)
    [worker] = shown["workers"]
    assert worker["info"]["worker_id"] == "worker-0"
    assert worker["loads"][0]["num_total_blocks"] == 256
    assert shown["num_running_requests"] == 0
    assert shown["requests"][0]["state"] == "length"


@pytest.mark.parametrize("protocol", ["grpc", "openai"])
async def test_baton_bench_serve(served: LocalCluster, protocol: str) -> None:
    shown = await asyncio.to_thread(
        baton,
        *("bench", "serve", "--protocol", protocol),
        *("--address", served.address, "--base-url", served.base_url),
        *("--num-requests", "6", "--concurrency", "3", "--warmup", "1"),
        *("--prompt-tokens", "8-40", "--output-tokens", "12"),
    )
    assert (shown["requests"], shown["errors"]) == (6, 0)
    for name in ("ttft_ms", "itl_ms", "e2e_ms"):
        values = shown[name]
        assert set(values) >= {"mean", "p50", "p90", "p95", "p99"}
        assert 0 < values["p50"] <= values["p90"] <= values["p99"]
    assert shown["ttft_ms"]["mean"] < shown["e2e_ms"]["mean"]
    assert shown["output_tokens_per_s"] > 0
    assert shown["goodput_requests_per_s"] > 0
