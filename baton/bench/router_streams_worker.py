"""Decode workers that compute nothing, in one process: they register, and give every request a token per
step. What they speak is baton.v1 as a worker does; how a token is made up is theirs.

A token's id is the time of its making on the machine's monotonic clock, in units of `TICK_S`, so that
whoever receives it knows its age.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from baton.bench.router_tokenizer import NUM_WORDS, VOCAB_SIZE
from baton.rpc.server import Server
from baton.state.base import Report
from baton.state.registration import Registration
from baton.state.registries import RouterRegistry
from baton.types import Fingerprint, PoolId, PoolLoad, Role, WorkerInfo
from baton.v1 import common_pb2, decode_pb2, decode_pb2_grpc, worker_pb2, worker_pb2_grpc

TICK_S = 1e-4
NUM_BLOCKS = 1 << 20


def token_of(now_s: float) -> int:
    return int(now_s / TICK_S) % NUM_WORDS


def age_s(token_id: int, now_s: float) -> float:
    """Seconds since a token was made; of less than `NUM_WORDS` ticks."""
    return (now_s / TICK_S - token_id) % NUM_WORDS * TICK_S


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """`step_s`: between two tokens of a request."""

    router: str
    num_workers: int
    step_s: float
    model: str


def run(plan: WorkerPlan, core: int) -> None:
    """The process; until killed."""
    os.sched_setaffinity(0, {core})
    asyncio.run(_serve(plan))


async def _serve(plan: WorkerPlan) -> None:
    async with AsyncExitStack() as stack:
        for index in range(plan.num_workers):
            server = Server()
            offset_s = plan.step_s * index / plan.num_workers  # real workers are not in step
            server.add_background(
                decode_pb2_grpc.add_DecodeServicer_to_server, _Decode(plan.step_s, offset_s)
            )
            server.add_background(worker_pb2_grpc.add_WorkerServicer_to_server, _Worker())  # type: ignore[abstract]
            await stack.enter_async_context(server)
            report = _report(f"worker-{index}", server.address, plan.model)
            Registration([RouterRegistry(plan.router)], partial(_same, report)).start()
        await asyncio.Event().wait()


def _same(report: Report) -> Report:
    return report


def _report(worker_id: str, address: str, model: str) -> Report:
    info = WorkerInfo(
        worker_id=worker_id,
        incarnation=1,
        role=Role.DECODE,
        address=address,
        model=model,
        fingerprint=Fingerprint("made up", 64, 1, "fp16", 1, 1, 64),
        max_model_len=1 << 20,
        vocab_size=VOCAB_SIZE,
        num_dp_ranks=1,
        num_total_blocks=NUM_BLOCKS,
        package_version="0",
        transports=(),
        host_id="",
        pid=os.getpid(),
    )
    load = PoolLoad(
        PoolId(worker_id), 1, 0, 0, 0, NUM_BLOCKS, NUM_BLOCKS, 0, 0, 0, prefill_tokens_per_s=1e5
    )
    return Report(info, (load,))


class _Worker(worker_pb2_grpc.WorkerServicer):  # the router calls nothing else of it
    """Its cache stays empty."""

    async def StreamKvEvents(
        self, request: worker_pb2.StreamKvEventsRequest, context: Any
    ) -> AsyncIterator[worker_pb2.KvEventBatch]:
        yield worker_pb2.KvEventBatch(pool=request.pool, snapshot=True, records=b"\x90")
        await asyncio.Event().wait()


class _Decode(decode_pb2_grpc.DecodeServicer):
    def __init__(self, step_s: float, offset_s: float) -> None:
        self._step_s = step_s
        self._offset_s = offset_s

    async def Serve(
        self, request_iterator: AsyncIterator[decode_pb2.RouterMessage], context: Any
    ) -> AsyncIterator[decode_pb2.DecodeMessage]:
        left: dict[int, int] = {}  # key -> tokens still to be made
        answers: list[decode_pb2.DecodeMessage] = []
        reader = asyncio.create_task(_read(request_iterator, left, answers))
        due_s = time.monotonic() + self._offset_s
        try:
            while not reader.done():
                due_s = max(due_s + self._step_s, time.monotonic() - self._step_s)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                while answers:
                    yield answers.pop(0)
                if left:
                    yield decode_pb2.DecodeMessage(step=_step(left))
        finally:
            reader.cancel()


async def _read(
    messages: AsyncIterator[decode_pb2.RouterMessage],
    left: dict[int, int],
    answers: list[decode_pb2.DecodeMessage],
) -> None:
    async for message in messages:
        match message.WhichOneof("message"):
            case "start":
                left[message.start.key] = message.start.sampling.max_tokens
            case "cancel":
                left.pop(message.cancel.key, None)
            case "clock_probe":
                message.clock_probe.worker_time_s = time.monotonic()
                answers.append(decode_pb2.DecodeMessage(clock_probe=message.clock_probe))


def _step(left: dict[int, int]) -> decode_pb2.StepOutputs:
    """A token for everyone; who has had all of theirs ends."""
    now_s = time.monotonic()
    keys: Sequence[int] = list(left)
    ended = []
    for key in keys:
        left[key] -= 1
        if not left[key]:
            del left[key]
            ended.append(key)
    return decode_pb2.StepOutputs(
        worker_time_s=now_s,
        keys=keys,
        token_ids=[token_of(now_s)] * len(keys),
        finished_samples=[
            decode_pb2.SampleFinished(key=key, reason=common_pb2.FINISH_REASON_LENGTH)
            for key in ended
        ],
        finished=[decode_pb2.RequestFinished(key=key) for key in ended],
    )
