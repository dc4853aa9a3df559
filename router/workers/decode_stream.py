"""The one stream between this router and one decode worker, and the requests that share it.

    dispatcher --start, cancel--> DecodeStream ==Serve==> worker
    dispatcher <--Leg.take()----- DecodeStream <==Serve== worker      one message per step

A `Leg` is one attempt of one request on this worker. When the stream breaks every leg on it learns so
at once (`Unavailable`), and the stream is opened again for as long as the worker is registered. What
cannot be understood about a leg ends that leg alone (`Internal`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import NamedTuple

import grpc

from baton import convert
from baton.errors import BatonError, Internal, Unavailable
from baton.instants import ClockOffset
from baton.rpc.outgoing import Outgoing
from baton.types import (
    FinishReason,
    HandOffReport,
    PoolId,
    PositionLogprobs,
    PrefillChoice,
    Usage,
)
from baton.v1 import common_pb2, decode_pb2, decode_pb2_grpc

log = logging.getLogger(__name__)

_PROBE_INTERVAL_S = 1.0
_FIRST_PROBES_S, _NUM_FIRST_PROBES = 0.02, 5
_RECONNECT_S = 0.2


class Row(NamedTuple):
    """One token of one sample. A tuple: there is one per token."""

    sample_index: int
    token_id: int
    logprobs: PositionLogprobs | None = None


@dataclass(frozen=True, slots=True)
class SampleEnd:
    sample_index: int
    reason: FinishReason
    stop_token_id: int


@dataclass(frozen=True, slots=True)
class LegEnd:
    """The worker's last word. `instants` are on this router's clock."""

    error: BatonError | None
    usage: Usage
    instants: dict[str, float]
    num_preemptions: int
    hand_off: HandOffReport | None


@dataclass(slots=True)
class LegUpdate:
    """Everything that arrived for a leg since it was last asked, in order of arrival."""

    rows: list[Row] = field(default_factory=list)
    prompt_logprobs: list[common_pb2.PositionLogprobs] = field(default_factory=list)  # may be many
    ended: list[SampleEnd] = field(default_factory=list)
    prefill_lost: BatonError | None = None
    prefill_lost_computing: bool = False
    end: LegEnd | None = None

    def __bool__(self) -> bool:
        return bool(
            self.rows or self.end or self.ended or self.prompt_logprobs or self.prefill_lost
        )


class Leg:
    """One attempt of one request on one worker. What is not taken is kept: never more than the
    request's max_tokens."""

    def __init__(self, key: int, stream: DecodeStream) -> None:
        self.key = key
        self.pending = LegUpdate()
        self.computing: bool | None = None  # in the worker's coming step; None until it has said
        self._stream = stream
        self._waiter: asyncio.Future[None] | None = None
        self._lost: BatonError | None = None

    async def take(self) -> LegUpdate:
        """Waits for news. Raises Unavailable when the worker is lost and nothing is left to read."""
        while not self.pending:
            if self._lost is not None:
                raise self._lost
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        update, self.pending = self.pending, LegUpdate()
        return update

    def may_have_ended_worker(self, *, suspected: bool) -> bool:
        """Whether the worker was, or may have been, computing it when it was lost. It may have begun with
        what was sent to it last without a word of that having come; but of a suspect it comes first."""
        if self.computing is None:
            return self._lost is not None and not suspected
        return self.computing

    def cancel(self, sample_index: int | None = None) -> None:
        self._stream.cancel(self.key, sample_index)

    def reroute(self, prefill: PrefillChoice | None) -> None:
        """Answers `prefill_lost`: this one computes the prompt, or the decode worker itself."""
        self._stream.reroute(self.key, prefill)

    def close(self) -> None:
        """Forgets the leg; cancels it where the worker has not ended it."""
        self._stream.close_leg(self.key)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self, error: BatonError) -> None:
        self._lost = error
        self.wake()


class DecodeStream:
    """`run` keeps the stream open until cancelled; `connected` says whether legs can start."""

    def __init__(
        self, worker_id: str, router_id: str, on_change: Callable[[], Awaitable[None]]
    ) -> None:
        self.worker_id = worker_id
        self.connected = False
        self.clock_offset = ClockOffset()
        self._router_id = router_id
        self._on_change = on_change
        self._legs: dict[int, Leg] = {}
        self._num_legs = 0
        self._outgoing = Outgoing[decode_pb2.RouterMessage]()
        self._met: set[tuple[PoolId, int]] = set()  # prefill pools, on this stream

    def start(self, message: decode_pb2.Start) -> Leg:
        """Sends `message` under a new key and returns its leg."""
        if not self.connected:
            raise Unavailable(f"no connection to worker {self.worker_id}")
        self._num_legs += 1
        message.key = self._num_legs
        leg = self._legs[message.key] = Leg(message.key, self)
        self._send(decode_pb2.RouterMessage(start=message))
        return leg

    def cancel(self, key: int, sample_index: int | None) -> None:
        if key in self._legs:
            cancel = decode_pb2.Cancel(key=key, sample_index=sample_index)
            self._send(decode_pb2.RouterMessage(cancel=cancel))

    def reroute(self, key: int, prefill: PrefillChoice | None) -> None:
        choice = convert.prefill_choice_to_proto(prefill) if prefill else None
        self._send(decode_pb2.RouterMessage(reroute=decode_pb2.Reroute(key=key, prefill=choice)))

    def meet(self, prefill: Iterable[PrefillChoice]) -> None:
        """Lets the worker open its links to these, as far as it has not been told of them."""
        fresh = [each for each in prefill if (each.pool, each.incarnation) not in self._met]
        if fresh and self.connected:
            self._met.update((each.pool, each.incarnation) for each in fresh)
            choices = [convert.prefill_choice_to_proto(each) for each in fresh]
            self._send(decode_pb2.RouterMessage(meet=decode_pb2.Meet(prefill=choices)))

    def close_leg(self, key: int) -> None:
        self.cancel(key, None)
        self._legs.pop(key, None)

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Opens the stream, reads it, opens it again when it breaks."""
        stub = decode_pb2_grpc.DecodeStub(channel)
        while True:
            try:
                await self._serve_once(stub)
                reason = "the worker closed the stream"
            except grpc.aio.AioRpcError as error:
                reason = error.details() or error.code().name
            except Exception as error:  # requests go on elsewhere, and nobody else keeps it open
                log.exception("the stream to worker %s failed", self.worker_id)
                reason = repr(error)
            finally:
                self.connected = False
                self._lose_all(Unavailable(f"worker {self.worker_id} was lost"))
            await self._on_change()
            log.info("stream to worker %s ended: %s", self.worker_id, reason)
            await asyncio.sleep(_RECONNECT_S)

    async def _serve_once(self, stub: decode_pb2_grpc.DecodeAsyncStub) -> None:
        self._outgoing = outgoing = Outgoing[decode_pb2.RouterMessage]()
        self._met.clear()
        hello = decode_pb2.Hello(router_id=self._router_id)
        self._send(decode_pb2.RouterMessage(hello=hello))
        probes = asyncio.create_task(self._probe())
        try:
            call = stub.Serve(outgoing)
            await call.wait_for_connection()
            self.connected = True
            await self._on_change()
            async for message in call:
                self._receive(message, time.monotonic())
        finally:
            probes.cancel()
            outgoing.end()

    async def _probe(self) -> None:
        """The first answers come while the connection is being set up and bound the clocks badly: some
        more follow at once."""
        for pause_s in chain(repeat(_FIRST_PROBES_S, _NUM_FIRST_PROBES), repeat(_PROBE_INTERVAL_S)):
            probe = decode_pb2.ClockProbe(router_time_s=time.monotonic())
            self._send(decode_pb2.RouterMessage(clock_probe=probe))
            await asyncio.sleep(pause_s)

    def _send(self, message: decode_pb2.RouterMessage) -> None:
        self._outgoing.put(message)

    def _receive(self, message: decode_pb2.DecodeMessage, now_s: float) -> None:
        match message.WhichOneof("message"):
            case "step":
                self._deliver(message.step)
            case "prefill_lost":
                lost = message.prefill_lost
                if leg := self._legs.get(lost.key):
                    leg.pending.prefill_lost = convert.error_from_proto(lost.error)
                    leg.pending.prefill_lost_computing = lost.computing
                    leg.wake()
            case "clock_probe":
                probe = message.clock_probe
                self.clock_offset.update(probe.router_time_s, probe.worker_time_s, now_s)
            case kind:
                log.warning("worker %s says what is not known here: %s", self.worker_id, kind)

    def _deliver(self, step: decode_pb2.StepOutputs) -> None:
        """Puts what a step says into the legs it concerns, and wakes them. A leg that was closed here,
        while the worker had not heard of it yet, is passed over."""
        legs = self._legs
        for keys, computing in ((step.computing, True), (step.waiting, False)):
            for key in keys:
                if leg := legs.get(key):
                    leg.computing = computing
        logprobs = {row.row: convert.logprobs_from_proto(row.logprobs) for row in step.logprobs}
        indices: Iterable[int] = step.sample_indices or repeat(0, len(step.keys))
        if len(step.keys) == len(step.token_ids) and len(step.sample_indices) in (
            0,
            len(step.keys),
        ):
            columns = zip(step.keys, indices, step.token_ids, strict=False)
            for row, (key, sample_index, token_id) in enumerate(columns):
                if leg := legs.get(key):
                    leg.pending.rows.append(Row(sample_index, token_id, logprobs.get(row)))
        else:  # whose token is whose cannot be said
            for key in set(step.keys):
                self._not_understood(key, "its columns of tokens have different lengths")
        touched = legs.keys() & set(step.keys)
        for prompt in step.prompt_logprobs:
            if leg := legs.get(prompt.key):
                leg.pending.prompt_logprobs += prompt.logprobs
                touched.add(prompt.key)
        for ended in step.finished_samples:
            if leg := legs.get(ended.key):
                try:
                    leg.pending.ended.append(_sample_end(ended))
                    touched.add(ended.key)
                except ValueError as error:
                    self._not_understood(ended.key, str(error))
        for finished in step.finished:
            if leg := legs.pop(finished.key, None):
                leg.pending.end = self._leg_end(finished)
                leg.wake()
                touched.discard(finished.key)
        for key in touched & legs.keys():
            legs[key].wake()

    def _not_understood(self, key: int, problem: str) -> None:
        """What the worker said about a leg makes no sense: the leg ends, here and there."""
        if leg := self._legs.get(key):
            log.warning("worker %s about request %d: %s", self.worker_id, key, problem)
            self.close_leg(key)
            leg.lose(Internal(f"worker {self.worker_id} was not understood: {problem}"))

    def _leg_end(self, message: decode_pb2.RequestFinished) -> LegEnd:
        return LegEnd(
            convert.error_from_proto(message.error) if message.HasField("error") else None,
            convert.usage_from_proto(message.usage),
            {
                each.instant: self.clock_offset.to_own(each.worker_time_s)
                for each in message.instants
            },
            message.num_preemptions,
            convert.hand_off_from_proto(message.hand_off) if message.HasField("hand_off") else None,
        )

    def _lose_all(self, error: BatonError) -> None:
        legs, self._legs = self._legs, {}
        for leg in legs.values():
            leg.lose(error)


def _sample_end(message: decode_pb2.SampleFinished) -> SampleEnd:
    """Raises ValueError where it gives no reason, or one of a later version."""
    reason = convert.finish_reason_from_proto(message.reason)
    if reason is None:
        raise ValueError("a sample ended without a reason")
    return SampleEnd(message.sample_index, reason, message.stop_token_id)
