"""The clients of that measurement, in a process of their own: they hold so many requests open, count what
arrives, and note how old every token is by then."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import grpc

from baton.bench.router_streams_worker import age_s
from baton.rpc.channel import channel
from baton.rpc.outgoing import Outgoing
from baton.v1 import inference_pb2, inference_pb2_grpc

_MAX_AGES = 200_000


@dataclass(frozen=True, slots=True)
class ClientPlan:
    """`num_streams` requests at a time, each of `num_tokens`, started again when it ends. `session`: all on
    one stream instead of a call each. Counted are `measure_s` after `warm_up_s`."""

    router: str
    num_streams: int
    num_tokens: int
    session: bool
    warm_up_s: float
    measure_s: float


@dataclass(slots=True)
class Counted:
    """What arrived in the measured time."""

    num_messages: int = 0
    num_tokens: int = 0
    ages_s: list[float] = field(default_factory=list)

    def take(self, deltas: list[inference_pb2.SampleDelta], now_s: float) -> None:
        for delta in deltas:
            if delta.token_ids and not delta.text:
                raise ValueError("a token without its text")
            self.num_tokens += len(delta.token_ids)
            if len(self.ages_s) < _MAX_AGES:
                self.ages_s += [age_s(token_id, now_s) for token_id in delta.token_ids]


def run(plan: ClientPlan, core: int, result: Connection) -> None:
    """The process; sends one `Counted`."""
    os.sched_setaffinity(0, {core})
    result.send(asyncio.run(_count(plan)))


async def _count(plan: ClientPlan) -> Counted:
    counted = Counted()
    async with channel(plan.router) as link:
        stub: inference_pb2_grpc.InferenceAsyncStub = inference_pb2_grpc.InferenceStub(link)
        window = _Window(plan)
        if plan.session:
            work = [_session(stub, plan, window, counted)]
        else:
            work = [_one_by_one(stub, plan, window, counted) for _ in range(plan.num_streams)]
        tasks = [asyncio.create_task(each) for each in work]
        done, _ = await asyncio.wait(
            tasks, timeout=plan.warm_up_s + plan.measure_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()  # none ends by itself
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return counted


class _Window:
    def __init__(self, plan: ClientPlan) -> None:
        self._from_s = time.monotonic() + plan.warm_up_s
        self._to_s = self._from_s + plan.measure_s

    def holds(self, now_s: float) -> bool:
        return self._from_s <= now_s < self._to_s


def _request(plan: ClientPlan) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(text="Tell me a story")
    request.sampling.max_tokens = plan.num_tokens
    request.sampling.ignore_eos = True
    return request


async def _one_by_one(
    stub: inference_pb2_grpc.InferenceAsyncStub, plan: ClientPlan, window: _Window, counted: Counted
) -> None:
    while True:
        async for message in stub.Generate(_request(plan)):
            now_s = time.monotonic()
            if window.holds(now_s):
                counted.num_messages += 1
                counted.take(list(message.deltas), now_s)


async def _session(
    stub: inference_pb2_grpc.InferenceAsyncStub, plan: ClientPlan, window: _Window, counted: Counted
) -> None:
    outgoing = Outgoing[inference_pb2.SessionRequest]()

    def start(key: int) -> None:
        start = inference_pb2.SessionStart(key=key, request=_request(plan))
        outgoing.put(inference_pb2.SessionRequest(start=start))

    for key in range(plan.num_streams):
        start(key)
    num_started = plan.num_streams
    async for message in stub.Session(outgoing):
        now_s = time.monotonic()
        counts = window.holds(now_s)
        counted.num_messages += counts
        for update in message.updates:
            if counts:
                counted.take(list(update.response.deltas), now_s)
            if update.HasField("error"):
                raise grpc.RpcError(update.error.message)
            if update.response.HasField("usage"):
                start(num_started)
                num_started += 1
