"""A router with one worker's worth of state, on an event loop in a thread of its own: what commands
of the command line talk to, over real gRPC."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, Self

from baton import convert
from baton.errors import NotFound
from baton.rpc.server import Server
from baton.types import Fingerprint, PoolId, PoolLoad, Role, Timeline, Usage, WorkerInfo
from baton.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2_grpc
from tests.fake_inference import FakeInference

WORKER = WorkerInfo(
    worker_id="decode-0",
    incarnation=1,
    role=Role.DECODE,
    address="127.0.0.1:7000",
    model="fake",
    fingerprint=Fingerprint("identity", 64, 1, "fp16", 2, 2, 8),
    max_model_len=64,
    vocab_size=256,
    num_dp_ranks=1,
    num_total_blocks=100,
    package_version="0",
    transports=(),
    host_id="host",
    pid=1,
)
LOAD = PoolLoad(
    pool=PoolId("decode-0"),
    incarnation=1,
    num_running_requests=3,
    num_waiting_requests=2,
    num_waiting_tokens=17,
    num_total_blocks=100,
    num_free_blocks=38,
    num_held_blocks=50,
    num_cached_blocks=12,
    num_quarantined_blocks=0,
    prefill_tokens_per_s=1234.5,
    decode_step_s=0.0042,
)
TIMELINE = Timeline(
    {
        "received": 0.0,
        "prefill_start": 0.25,
        "prefill_end": 0.5,
        "first_token": 0.5,
        "decode_start": 0.5,
        "finished": 2.0,
    },
    "decode-0",
    "prefill-0",
    4,
    8,
    1,
    0,
)


class FakeAdmin(admin_pb2_grpc.AdminServicer):
    """Remembers what was drained."""

    def __init__(self) -> None:
        self.drained: list[tuple[str, float]] = []
        self.num_asked = 0

    async def ListWorkers(self, request: Any, context: Any) -> Any:
        worker = admin_pb2.WorkerStatus(
            info=convert.worker_info_to_proto(WORKER),
            loads=[convert.pool_load_to_proto(LOAD)],
            lease_remaining_s=4.5,
        )
        return admin_pb2.ListWorkersResponse(workers=[worker])

    async def Drain(self, request: Any, context: Any) -> Any:
        if request.worker_id != WORKER.worker_id:
            raise NotFound(f"no worker is called {request.worker_id!r}", field="worker_id")
        self.drained.append((request.worker_id, request.grace_s))
        return admin_pb2.DrainResponse()

    async def GetLoad(self, request: Any, context: Any) -> Any:
        self.num_asked += 1
        return admin_pb2.GetLoadResponse(
            num_running_requests=3,
            num_waiting_requests=2,
            pools=[convert.pool_load_to_proto(LOAD)],
            num_prompt_tokens=10_000 * self.num_asked,
            num_output_tokens=1_000 * self.num_asked,
        )

    async def ExplainRoute(self, request: Any, context: Any) -> Any:
        decode = common_pb2.Pool(worker_id="decode-0")
        ways = [
            admin_pb2.RouteOption(
                decode=decode,
                prefill=common_pb2.Pool(worker_id=name),
                num_missing_tokens=len(request.text),
                local=admin_pb2.RouteWay(compute_s=0.5, others_s=0.1),
                remote=admin_pb2.RouteWay(wait_s=wait_s, compute_s=0.25, transfer_s=0.125),
                lends=True,
                num_streams=7,
                step_s=0.0125,
            )
            for name, wait_s in (("prefill-0", 0.0), ("prefill-1", 2.0))
        ]
        return admin_pb2.ExplainRouteResponse(
            num_prompt_tokens=40, chosen=ways[0], by_decode=ways[:1], by_prefill=ways
        )

    async def ListRequests(self, request: Any, context: Any) -> Any:
        status = admin_pb2.RequestStatus(
            request_id="request-1",
            state="length",
            usage=convert.usage_to_proto(Usage(12, 4, 30)),
            timeline=convert.timeline_to_proto(TIMELINE),
        )
        return admin_pb2.ListRequestsResponse(requests=[status])


class FakeModel(FakeInference):
    """`has_text` False: a model without a tokenizer."""

    has_text = True

    def _delta(self, *arguments: Any) -> Any:
        delta = super()._delta(*arguments)
        if not self.has_text:
            delta.ClearField("text")
        return delta


class FakeCluster:
    """Serves from `with` to its end; `address` is host:port."""

    def __init__(self) -> None:
        self.inference = FakeModel()
        self.admin = FakeAdmin()
        self.address = ""
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    async def _serve(self) -> None:
        server = Server()
        server.add(inference_pb2_grpc.add_InferenceServicer_to_server, self.inference)
        server.add_background(admin_pb2_grpc.add_AdminServicer_to_server, self.admin)
        async with server:
            self.address = server.address
            self._started.set()
            await self._stop.wait()

    def wait(self, event: asyncio.Event) -> None:
        """Until an event of the servers' loop is set."""
        assert asyncio.run_coroutine_threadsafe(event.wait(), self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
