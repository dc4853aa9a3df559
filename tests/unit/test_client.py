"""The SDK against real gRPC servers in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from baton import AsyncClient, errors
from baton.rpc.server import Server
from baton.types import FinishReason
from baton.v1 import inference_pb2_grpc
from tests.fake_inference import TIMELINE, FakeInference

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Router:
    def __init__(self, fake: FakeInference) -> None:
        self.fake = fake
        self.server = Server()
        self.server.add(inference_pb2_grpc.add_InferenceServicer_to_server, fake)


@pytest.fixture
async def routers() -> AsyncIterator[list[Router]]:
    both = [Router(FakeInference()), Router(FakeInference())]
    async with both[0].server, both[1].server:
        yield both


@pytest.fixture
async def client(routers: list[Router]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient([router.server.address for router in routers]) as client:
        yield client


async def test_generate_gathers_the_stream(client: AsyncClient) -> None:
    generation = await client.generate("hello", max_tokens=3, logprobs=1)
    assert generation.text == "7 8 9 "
    assert generation.token_ids == (7, 8, 9)
    assert generation.finish_reason is FinishReason.LENGTH
    assert [position.token_id for position in generation.logprobs] == [7, 8, 9]
    assert (generation.model, generation.seed) == ("fake", 7)
    assert generation.usage.num_output_tokens == 3
    assert generation.timeline == TIMELINE


async def test_samples_are_kept_apart(client: AsyncClient) -> None:
    generation = await client.generate([1, 2, 3], max_tokens=2, n=2, seed=0)
    assert [sample.text for sample in generation.samples] == ["0 1 ", "100 101 "]


async def test_request_carries_what_the_caller_gave(
    client: AsyncClient, routers: list[Router]
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    await client.generate(
        messages,
        max_tokens=1,
        temperature=0.0,
        stop="end",
        logit_bias={5: -1.5},
        tenant="acme",
        priority=-2,
        timeout_s=30.0,
        traceparent=TRACE,
        detokenize=False,
    )
    (request,) = routers[0].fake.requests
    assert request.chat.messages[0].content == "hi"
    assert request.sampling.HasField("temperature")
    assert request.sampling.temperature == 0
    assert not request.sampling.HasField("top_p")
    assert list(request.sampling.stop) == ["end"]
    assert dict(request.sampling.logit_bias) == {5: -1.5}
    assert (request.tenant, request.priority, request.detokenize) == ("acme", -2, False)
    assert len(request.request_id) == 32
    assert routers[0].fake.traceparents == [TRACE]
    (deadline_s,) = routers[0].fake.deadlines_s
    assert deadline_s is not None
    assert 20 < deadline_s < 31  # gRPC rounds it on the wire


async def test_without_timeout_there_is_no_deadline(
    client: AsyncClient, routers: list[Router]
) -> None:
    await client.generate("hi", max_tokens=1)
    assert routers[0].fake.deadlines_s == [None]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": "hot"}, "sampling.temperature"),
        ({"max_tokens": 1 << 40}, "sampling.max_tokens"),
        ({"stop_token_ids": [-1]}, "sampling.stop_token_ids"),
        ({"logit_bias": {"a": 1}}, "sampling.logit_bias"),
        ({"priority": 0.5}, "priority"),
        ({"output_token_ids": [[1, -2]]}, "output_token_ids"),
    ],
)
async def test_what_no_message_can_hold_is_refused_by_name(
    client: AsyncClient, options: dict[str, object], field: str
) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        client.stream("hi", **options)  # type: ignore[arg-type]
    assert refused.value.field == field


async def test_bad_prompts_are_refused_by_name(client: AsyncClient) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        client.stream([1, -2])
    assert refused.value.field == "token_ids"
    with pytest.raises(errors.InvalidArgument) as refused:
        client.stream([{"role": "user", "contents": "hi"}])
    assert refused.value.field == "chat"
    with pytest.raises(TypeError, match="temprature"):
        client.stream("hi", temprature=1.0)  # type: ignore[call-arg]


async def test_refusal_is_typed_and_not_retried(client: AsyncClient, routers: list[Router]) -> None:
    routers[0].fake.refuse = errors.Overloaded("full", retry_after_s=1.5)
    with pytest.raises(errors.Overloaded) as refused:
        await client.generate("hi", max_tokens=1)
    assert refused.value.retry_after_s == 1.5
    assert routers[1].fake.requests == []


@pytest.mark.parametrize("die_after", range(5))
async def test_lost_stream_goes_on_at_the_next_router(
    client: AsyncClient, routers: list[Router], die_after: int
) -> None:
    routers[0].fake.die_after = die_after
    async with client.stream("hi", max_tokens=5, traceparent=TRACE) as stream:
        deltas = [delta async for delta in stream]
    assert [token for delta in deltas for token in delta.token_ids] == [7, 8, 9, 10, 11]
    assert "".join(delta.text for delta in deltas) == "7 8 9 10 11 "
    assert stream.usage is not None
    assert stream.num_continuations == 1
    (first,), (second,) = routers[0].fake.requests, routers[1].fake.requests
    assert second.request_id == first.request_id
    assert second.sampling.seed == 7
    assert second.weights == ("these" if second.output_token_ids else "")
    assert [list(sample.ids) for sample in second.output_token_ids] == (
        [[7, 8, 9, 10][:die_after]] if die_after else []
    )
    assert routers[1].fake.traceparents == [TRACE]


@pytest.mark.parametrize("die_after", [-1, 0, 1])
async def test_prompt_logprobs_arrive_once(
    client: AsyncClient, routers: list[Router], die_after: int
) -> None:
    routers[0].fake.die_after = die_after
    generation = await client.generate("hi", max_tokens=2, prompt_logprobs=1)
    assert [position.token_id for position in generation.prompt_logprobs] == [1, 2]
    assert generation.token_ids == (7, 8)
    assert len(routers[1].fake.requests) == 1


async def test_samples_not_begun_are_continued_from_nothing(
    client: AsyncClient, routers: list[Router]
) -> None:
    routers[0].fake.die_after = 1  # in the first of three samples
    generation = await client.generate("hi", max_tokens=2, n=3, seed=0)
    assert [sample.token_ids for sample in generation.samples] == [(0, 1), (100, 101), (200, 201)]
    (request,) = routers[1].fake.requests
    assert [list(sample.ids) for sample in request.output_token_ids] == [[0], [], []]


async def test_continuation_given_by_the_caller_is_continued(
    client: AsyncClient, routers: list[Router]
) -> None:
    routers[0].fake.die_after = 3
    generation = await client.generate("hi", max_tokens=5, output_token_ids=[[7, 8]], seed=7)
    assert generation.token_ids == (9, 10, 11)
    assert generation.text == "8 9 10 11 "  # the text of 8 was still held back
    assert list(routers[1].fake.requests[0].output_token_ids[0].ids) == [7, 8, 9]


async def test_only_router_is_asked_again_in_the_middle_of_a_stream() -> None:
    router = Router(FakeInference(die_after=2))
    async with router.server, AsyncClient(router.server.address) as client:
        assert (await client.generate("hi", max_tokens=4)).token_ids == (7, 8, 9, 10)
    assert len(router.fake.requests) == 2


async def test_stopped_router_is_left_for_good(client: AsyncClient, routers: list[Router]) -> None:
    async with client.stream("hi", max_tokens=40) as stream:
        routers[0].fake.pause_s = routers[1].fake.pause_s = 0.002
        tokens = list((await anext(stream)).token_ids)
        await routers[0].server.stop()
        tokens += [token for delta in [d async for d in stream] for token in delta.token_ids]
    assert tokens == list(range(7, 47))
    await client.generate("hi", max_tokens=1)
    assert len(routers[0].fake.requests) == 1


async def test_nobody_there_is_unavailable_at_once() -> None:
    server = Server()
    await server.start()
    await server.stop()
    async with AsyncClient([server.address, server.address]) as client:
        with pytest.raises(errors.Unavailable):
            await client.generate("hi", max_tokens=1)
        with pytest.raises(errors.Unavailable):
            await client.models()


async def test_deadline_bounds_the_whole_request(
    client: AsyncClient, routers: list[Router]
) -> None:
    routers[0].fake.pause_s = 60.0
    with pytest.raises(errors.DeadlineExceeded):
        await client.generate("hi", max_tokens=2, timeout_s=0.2)
    await asyncio.wait_for(routers[0].fake.cancelled.wait(), 10)


async def test_leaving_a_stream_cancels_it(client: AsyncClient, routers: list[Router]) -> None:
    routers[0].fake.pause_s = 0.01
    async with client.stream("hi", max_tokens=1_000_000) as stream:
        await anext(stream)
    await asyncio.wait_for(routers[0].fake.cancelled.wait(), 10)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_cancel_ends_a_waiting_reader(client: AsyncClient, routers: list[Router]) -> None:
    routers[0].fake.pause_s = 60.0
    stream = client.stream("hi", max_tokens=2)
    await anext(stream)
    waiting = asyncio.ensure_future(stream.receive())
    await asyncio.sleep(0)
    stream.cancel()
    assert await asyncio.wait_for(waiting, 10) == []


async def test_cancelling_the_caller_cancels_the_request(
    client: AsyncClient, routers: list[Router]
) -> None:
    routers[0].fake.pause_s = 60.0
    task = asyncio.create_task(client.generate("hi", max_tokens=2))
    await asyncio.wait_for(routers[0].fake.arrived.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(routers[0].fake.cancelled.wait(), 10)


async def test_tokenize_and_models_take_the_router_that_is_there(
    client: AsyncClient, routers: list[Router]
) -> None:
    await routers[0].server.stop()
    assert await client.tokenize("hi") == [104, 105]
    assert await client.tokenize([{"role": "user", "content": "yo"}]) == [121, 111]
    assert await client.detokenize([104, 105]) == "hi"
    assert [model.name for model in await client.models()] == ["fake"]


async def test_tokenize_refuses_what_is_tokens_already(client: AsyncClient) -> None:
    with pytest.raises(errors.InvalidArgument, match="prompt"):
        await client.tokenize([1, 2])
