"""What clients of a Baton server see: typed errors, health, reflection, bounds, drain. Real
gRPC."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from baton import errors
from baton.rpc.channel import channel
from baton.rpc.server import LIVENESS, Server, ServerOptions
from baton.rpc.status import ERROR_METADATA, from_rpc_error
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from baton.v1.common_pb2 import SamplingParams, WorkerInfo
from tests.fake_inference import FakeInference

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class EchoRegistry(worker_pb2_grpc.RegistryServicer):
    """A stream of requests to a stream of answers; `router_id` "fail" is answered with an error."""

    async def Register(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for report in request_iterator:
            if report.info.worker_id == "fail":
                raise errors.PermissionDenied("not you", field="info.worker_id")
            yield worker_pb2.LeaseGrant(router_id=report.info.worker_id)


class Served:
    """A server with both services, and a channel to it."""

    def __init__(self, options: ServerOptions | None = None) -> None:
        self.fake = FakeInference()
        self.server = Server(options)
        self.server.add(inference_pb2_grpc.add_InferenceServicer_to_server, self.fake)
        self.server.add_background(worker_pb2_grpc.add_RegistryServicer_to_server, EchoRegistry())
        self.channel: grpc.aio.Channel

    async def __aenter__(self) -> Served:
        await self.server.start()
        self.channel = channel(self.server.address)
        self.inference: Any = inference_pb2_grpc.InferenceStub(self.channel)
        self.registry: Any = worker_pb2_grpc.RegistryStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.channel.close(None)
        await self.server.stop()

    async def generate(self, request: pb.GenerateRequest | None = None) -> list[Any]:
        call = self.inference.Generate(request or pb.GenerateRequest())
        return [response async for response in call]

    async def status(self, service: str = "") -> int:
        answer = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return int(answer.status)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Served() as served:
        yield served


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value


@pytest.mark.parametrize("kind", [kind for kind in errors.STATUS if kind is not errors.BatonError])
async def test_errors_cross_the_wire_whole(served: Served, kind: type[errors.BatonError]) -> None:
    served.fake.refuse = kind("so it is – ñ", field="a.b", retry_after_s=2.5)
    for call in (served.generate(), served.inference.Tokenize(pb.TokenizeRequest())):
        error = await refusal(call)
        assert error.code().name == errors.STATUS[kind].grpc
        assert error.details() == "a.b: so it is – ñ"
        typed = from_rpc_error(error)
        assert type(typed) is kind
        assert (typed.message, typed.field, typed.retry_after_s) == ("so it is – ñ", "a.b", 2.5)


async def test_error_of_any_length_crosses_the_wire(served: Served) -> None:
    served.fake.refuse = errors.InvalidArgument("\U0001f600" * 5000, field="ü" * 5000)
    typed = from_rpc_error(await refusal(served.generate()))
    assert type(typed) is errors.InvalidArgument
    assert typed.message.startswith("\U0001f600" * 100)


async def test_defects_are_internal_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.fake.refuse = ZeroDivisionError("secret")
    with caplog.at_level(logging.ERROR, "baton.rpc"):
        for call in (served.generate(), served.inference.Tokenize(pb.TokenizeRequest())):
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.INTERNAL
            assert type(from_rpc_error(error)) is errors.Internal
            assert "secret" not in (error.details() or "")
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "secret",
        "secret",
    ]


async def test_error_from_the_middle_of_a_stream_of_requests(served: Served) -> None:
    call = served.registry.Register()
    await call.write(_report("w0"))
    assert (await call.read()).router_id == "w0"
    await call.write(_report("fail"))
    typed = from_rpc_error(await refusal(call.read()))
    assert type(typed) is errors.PermissionDenied


async def test_failed_call_to_a_third_process_keeps_its_error(served: Served) -> None:
    served.fake.refuse = errors.Overloaded("full", retry_after_s=3.0)
    relayed = await refusal(served.generate())
    async with Served() as front:
        front.fake.refuse = relayed
        typed = from_rpc_error(await refusal(front.generate()))
    assert type(typed) is errors.Overloaded
    assert typed.retry_after_s == 3.0


BAD_UTF8 = b"\xff\xfe"


@pytest.mark.parametrize(
    ("request_bytes", "field"),
    [
        (pb.GenerateRequest(text="@@").SerializeToString(), "text"),
        (pb.GenerateRequest(model="m", tenant="@@").SerializeToString(), "tenant"),
        (
            pb.GenerateRequest(sampling=SamplingParams(stop=["a", "b", "@@"])).SerializeToString(),
            "sampling.stop[2]",
        ),
        (
            pb.GenerateRequest(
                chat=pb.Chat(messages=[pb.ChatMessage(role="user"), pb.ChatMessage(content="@@")])
            ).SerializeToString(),
            "chat.messages[1].content",
        ),
    ],
)
@pytest.mark.parametrize("method", ["Generate", "Tokenize"])
async def test_invalid_utf8_names_the_field(
    served: Served, request_bytes: bytes, field: str, method: str
) -> None:
    if method == "Tokenize":
        request_bytes, field = pb.TokenizeRequest(text="@@").SerializeToString(), "text"
    data = request_bytes.replace(b"@@", BAD_UTF8)
    path = f"/baton.v1.Inference/{method}"
    if method == "Generate":
        call = served.channel.unary_stream(path, bytes, bytes)(data)
        error = await refusal(call.read())
    else:
        error = await refusal(served.channel.unary_unary(path, bytes, bytes)(data))
    typed = from_rpc_error(error)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (typed.field, typed.message) == (field, "is not valid UTF-8")
    assert served.fake.requests == []
    assert len(await served.generate()) == 2  # admitted and usage: it serves on


async def test_invalid_utf8_in_a_stream_of_requests(served: Served) -> None:
    path = "/baton.v1.Registry/Register"
    call = served.channel.stream_stream(path, bytes, bytes)()
    await call.write(_report("w0").SerializeToString())
    await call.read()
    await call.write(_report("@@").SerializeToString().replace(b"@@", BAD_UTF8))
    typed = from_rpc_error(await refusal(call.read()))
    assert type(typed) is errors.InvalidArgument
    assert typed.field == "info.worker_id"


async def test_bytes_that_are_no_message(served: Served) -> None:
    path = "/baton.v1.Inference/Tokenize"
    call = served.channel.unary_unary(path, bytes, bytes)(b"\x0a\xff")
    error = await refusal(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "baton.v1.TokenizeRequest" in str(from_rpc_error(error))


async def test_message_above_the_limit_is_an_argument_at_fault() -> None:
    async with Served(ServerOptions(max_message_bytes=10_000)) as served:
        error = await refusal(served.inference.Tokenize(pb.TokenizeRequest(text="x" * 20_000)))
        typed = from_rpc_error(error)
        assert type(typed) is errors.InvalidArgument
        assert typed.field == "message"
        assert "10000" in typed.message
        answer = await served.inference.Tokenize(pb.TokenizeRequest(text="x" * 9_000))
        assert len(answer.token_ids) == 9_000


async def test_unknown_method_is_another_version(served: Served) -> None:
    call = served.channel.unary_unary("/baton.v1.Inference/Tune", bytes, bytes)(b"")
    error = await refusal(call)
    assert type(from_rpc_error(error)) is errors.IncompatiblePeer


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.CANCELLED, errors.Cancelled),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
    ],
)
def test_bare_statuses(code: grpc.StatusCode, kind: type[errors.BatonError]) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "why", None)
    assert type(from_rpc_error(error)) is kind
    assert from_rpc_error(error).message == "why"


def test_garbled_error_metadata_is_internal() -> None:
    metadata = grpc.aio.Metadata((ERROR_METADATA, b"\x0a\xff"))
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), metadata, "why", None
    )
    assert type(from_rpc_error(error)) is errors.Internal


async def test_health_of_the_whole_and_of_each_service(served: Served) -> None:
    for service in ("", "baton.v1.Inference", "baton.v1.Registry"):
        assert await served.status(service) == NOT_SERVING
    await served.server.set_serving(True)
    for service in ("", "baton.v1.Inference", "baton.v1.Registry"):
        assert await served.status(service) == SERVING
    error = await refusal(served.health.Check(health_pb2.HealthCheckRequest(service="x")))
    assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_gives_services_and_their_files(served: Served) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)  # type: ignore[arg-type]
    request: Any = reflection_pb2.ServerReflectionRequest
    call = stub.ServerReflectionInfo()
    await call.write(request(list_services=""))
    services = {service.name for service in (await call.read()).list_services_response.service}
    assert {"baton.v1.Inference", "baton.v1.Registry", "grpc.health.v1.Health"} <= services
    await call.write(request(file_containing_symbol="baton.v1.Inference"))
    (file, *_) = (await call.read()).file_descriptor_response.file_descriptor_proto
    assert b"GenerateRequest" in file
    call.cancel()


async def test_open_streams_are_bounded_and_short_calls_are_not() -> None:
    async with Served(ServerOptions(max_open_streams=2)) as served:
        served.fake.pause_s = 60.0
        request = pb.GenerateRequest(sampling=SamplingParams(max_tokens=2))
        open_calls = [served.inference.Generate(request) for _ in range(2)]
        for call in open_calls:
            await call.read()
        typed = from_rpc_error(await refusal(served.generate(request)))
        assert type(typed) is errors.Overloaded
        assert typed.retry_after_s > 0
        await served.inference.Tokenize(pb.TokenizeRequest(text="a"))
        open_calls[0].cancel()
        await asyncio.wait_for(served.fake.cancelled.wait(), 10)
        assert len(await served.generate()) == 2


async def test_drain_lets_work_end_and_refuses_more(served: Served) -> None:
    await served.server.set_serving(True)
    served.fake.pause_s = 0.02
    background = served.registry.Register()
    await background.write(_report("w0"))
    await background.read()
    work = served.inference.Generate(pb.GenerateRequest(sampling=SamplingParams(max_tokens=10)))
    await work.read()
    draining = asyncio.create_task(served.server.drain(grace_s=30.0))
    await _until_not_serving(served)
    typed = from_rpc_error(await refusal(served.generate()))
    assert type(typed) is errors.Draining
    await background.write(_report("w1"))  # what accompanies the work goes on
    assert (await background.read()).router_id == "w1"
    await served.server.set_serving(True)  # has no effect any more
    assert await served.status() == NOT_SERVING
    assert await served.status(LIVENESS) == SERVING  # nobody need kill it
    while not (await work.read()).HasField("usage"):
        pass
    assert await work.code() is grpc.StatusCode.OK
    await asyncio.wait_for(draining, 10)
    assert type(from_rpc_error(await refusal(served.generate()))) is errors.Unavailable


async def test_drain_cuts_what_outlasts_the_grace(served: Served) -> None:
    served.fake.pause_s = 60.0
    work = served.inference.Generate(pb.GenerateRequest(sampling=SamplingParams(max_tokens=2)))
    await work.read()
    await asyncio.wait_for(served.server.drain(grace_s=0.05), 10)
    await work.read()
    assert type(from_rpc_error(await refusal(work.read()))) is errors.Unavailable
    await asyncio.wait_for(served.fake.cancelled.wait(), 10)


async def test_port_in_use_is_a_config_error(served: Served) -> None:
    other = Server(ServerOptions(port=served.server.port))
    with pytest.raises(errors.ConfigError, match=f"127.0.0.1:{served.server.port}"):
        await other.start()
    await other.stop()


async def test_processes_may_share_a_port() -> None:
    async with Server(ServerOptions(reuse_port=True)) as first:
        second = Server(ServerOptions(port=first.port, reuse_port=True))
        assert await second.start() == first.port
        await second.stop()


async def _until_not_serving(served: Served) -> None:
    watch = served.health.Watch(health_pb2.HealthCheckRequest())
    async for answer in watch:
        if answer.status == NOT_SERVING:
            watch.cancel()
            return


def _report(worker_id: str) -> worker_pb2.WorkerReport:
    return worker_pb2.WorkerReport(info=WorkerInfo(worker_id=worker_id))
