"""A client that does not read what its session brings: nobody else waits, and in the end it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from baton.rpc.channel import channel
from baton.rpc.server import Server, ServerOptions
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc
from router.frontend import Admitted, Deltas, GenerateUpdate, SampleDelta
from router.grpc.request_reader import RequestReader
from router.grpc.service import InferenceService
from router.request import GenerateInput
from tests.fakes import FakeFrontend

SLOW_CLIENT_S = 0.5


class Endless(FakeFrontend):
    """Asked for the model "endless" it never stops; `closed` when it is made to."""

    async def generate(self, request: GenerateInput) -> AsyncGenerator[GenerateUpdate, None]:
        if request.model != "endless":
            async with aclosing(super().generate(request)) as updates:
                async for update in updates:
                    yield update
            return
        try:
            yield Admitted(request.request_id, request.model, 1, 2)
            while True:
                yield Deltas((SampleDelta(0, "x" * 100_000, (1,), (), None, None),))
        finally:
            self.closed.release()


@asynccontextmanager
async def served(frontend: FakeFrontend) -> AsyncIterator[str]:
    async with Server(ServerOptions(slow_client_s=SLOW_CLIENT_S)) as server:
        nobody: Any = None
        dispatcher: Any = frontend
        service = InferenceService(dispatcher, nobody, RequestReader(frontend), server.one_request)
        register = inference_pb2_grpc.add_InferenceServicer_to_server
        server.add(register, service, sessions=("Session",))
        yield server.address


@asynccontextmanager
async def session(address: str, model: str) -> AsyncIterator[Any]:
    """One request on a session of its own, which nobody reads yet."""
    async with channel(address) as connection:
        stub: Any = inference_pb2_grpc.InferenceStub(connection)
        call = stub.Session()
        request = pb.GenerateRequest(request_id=model, model=model, text="hi")
        await call.write(pb.SessionRequest(start=pb.SessionStart(key=1, request=request)))
        yield call


async def test_who_does_not_read_is_given_up_and_holds_nobody_up() -> None:
    frontend = Endless()
    async with served(frontend) as address, session(address, "endless") as unread:
        async with session(address, "tiny") as call:
            await call.done_writing()
            told = [each async for response in call for each in response.updates]
            text = "".join(delta.text for each in told for delta in each.response.deltas)
            assert text == "Hello world"
        await asyncio.wait_for(frontend.closed.acquire(), 20)
        with pytest.raises(grpc.aio.AioRpcError) as given_up:
            async for _ in unread:
                pass
        assert given_up.value.code() is grpc.StatusCode.CANCELLED
