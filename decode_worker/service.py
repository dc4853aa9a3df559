"""baton.v1.Decode on the wire: streams of routers in, the role's events; outboxes, streams out.

A message that cannot be understood costs the request that it names, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from itertools import count

import grpc

from baton import convert
from baton.errors import InvalidArgument, Unavailable
from baton.rpc.outgoing import BoundedOutgoing
from baton.types import PrefillChoice
from baton.v1 import decode_pb2, decode_pb2_grpc
from baton.worker.door import not_understood
from decode_worker.messages import (
    Cancel,
    Event,
    Finished,
    Outbox,
    Reroute,
    RouterId,
    RouterLost,
    Start,
    Unreadable,
)

log = logging.getLogger(__name__)

Clock = Callable[[], float]
_Outgoing = BoundedOutgoing[decode_pb2.DecodeMessage]


class DecodeService(decode_pb2_grpc.DecodeServicer):
    """One multiplexed stream per router. `post` hands an event to the step loop, `meet` opens the link to a
    prefill worker; both and `incarnation` are set before the server starts."""

    post: Callable[[Event], None]
    meet: Callable[[PrefillChoice], None]
    incarnation: int

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._router_ids = count(1)
        self._outgoing: dict[RouterId, _Outgoing] = {}

    async def Serve(
        self,
        request_iterator: AsyncIterator[decode_pb2.RouterMessage],
        context: grpc.aio.ServicerContext[decode_pb2.RouterMessage, decode_pb2.DecodeMessage],
    ) -> AsyncIterator[decode_pb2.DecodeMessage]:
        router = next(self._router_ids)
        outgoing = _Outgoing(decode_pb2.DecodeMessage.ByteSize, lambda: self._lose(router, reader))
        self._outgoing[router] = outgoing
        reader = asyncio.create_task(self._read(router, request_iterator, outgoing))
        try:
            async for message in outgoing:
                yield message
            await reader  # raises what ended it
        finally:
            self._lose(router, reader)

    def _lose(self, router: RouterId, reader: asyncio.Task[None]) -> None:
        """Nothing of this router is heard any more. Also while a message to it cannot be written, where it
        has left too much unread."""
        reader.cancel()
        if self._outgoing.pop(router, None) is not None:
            self.post(RouterLost(router))

    def send(self, outboxes: Mapping[RouterId, Outbox]) -> None:
        """Sends what a step produced. Called on the event loop."""
        now_s = self._clock()
        for router, outbox in outboxes.items():
            if outgoing := self._outgoing.get(router):
                outgoing.put(decode_pb2.DecodeMessage(step=_step(outbox, now_s)))
                for number, error, computing in outbox.prefill_lost:
                    lost = decode_pb2.PrefillLost(
                        key=number, error=convert.error_to_proto(error), computing=computing
                    )
                    outgoing.put(decode_pb2.DecodeMessage(prefill_lost=lost))

    def outgoing(self) -> Iterator[_Outgoing]:
        """What is to be written, to each router. On the event loop."""
        yield from self._outgoing.values()

    async def _read(
        self,
        router: RouterId,
        messages: AsyncIterator[decode_pb2.RouterMessage],
        outgoing: _Outgoing,
    ) -> None:
        try:
            async for message in messages:
                kind = message.WhichOneof("message")
                try:
                    self._hear(router, kind, message, outgoing)
                except Exception as error:
                    log.warning("%s of a router was not understood: %r", kind, error)
                    if key := getattr(getattr(message, str(kind), None), "key", 0):
                        self.post(Unreadable((router, key), not_understood(error, kind)))
        finally:
            outgoing.end()

    def _hear(
        self,
        router: RouterId,
        kind: str | None,
        message: decode_pb2.RouterMessage,
        outgoing: _Outgoing,
    ) -> None:
        match kind:
            case "hello":
                pass  # a router's name is for logs; the stream itself is its identity
            case "start":
                if message.start.incarnation != self.incarnation:
                    raise Unavailable("the pool that was meant is gone: this is another one")
                self.post(_start(router, message.start, self._clock()))
            case "cancel":
                self.post(_cancel(router, message.cancel))
            case "reroute":
                self.post(_reroute(router, message.reroute))
            case "meet":
                for choice in message.meet.prefill:
                    self.meet(convert.prefill_choice_from_proto(choice))
            case "clock_probe":
                probe = message.clock_probe
                probe.worker_time_s = self._clock()
                outgoing.put(decode_pb2.DecodeMessage(clock_probe=probe))
            case _:
                raise InvalidArgument("is not known here", field="message")


def _start(router: RouterId, message: decode_pb2.Start, now_s: float) -> Start:
    return Start(
        key=(router, message.key),
        request_id=message.request_id,
        attempt=message.attempt,
        prompt_token_ids=list(message.prompt_token_ids),
        output_token_ids=[list(sample.ids) for sample in message.output_token_ids],
        params=convert.sampling_from_proto(message.sampling),
        eos_token_ids=list(message.eos_token_ids),
        salt=message.salt,
        priority=message.priority,
        suspected=message.suspected,
        deadline_s=now_s + message.timeout_s if message.timeout_s else None,
        prefill=_prefill_choice(message),
    )


def _reroute(router: RouterId, message: decode_pb2.Reroute) -> Reroute:
    return Reroute((router, message.key), _prefill_choice(message))


def _prefill_choice(message: decode_pb2.Start | decode_pb2.Reroute) -> PrefillChoice | None:
    if not message.HasField("prefill"):
        return None
    return convert.prefill_choice_from_proto(message.prefill)


def _cancel(router: RouterId, message: decode_pb2.Cancel) -> Cancel:
    sample_index = message.sample_index if message.HasField("sample_index") else None
    return Cancel((router, message.key), sample_index)


def _step(outbox: Outbox, now_s: float) -> decode_pb2.StepOutputs:
    return decode_pb2.StepOutputs(
        worker_time_s=now_s,
        keys=outbox.keys,
        sample_indices=outbox.sample_indices if any(outbox.sample_indices) else (),
        token_ids=outbox.token_ids,
        logprobs=[
            decode_pb2.RowLogprobs(row=row, logprobs=convert.logprobs_to_proto(logprobs))
            for row, logprobs in outbox.logprobs
        ],
        prompt_logprobs=[
            decode_pb2.PromptLogprobs(
                key=number, logprobs=[convert.logprobs_to_proto(each) for each in logprobs]
            )
            for number, logprobs in outbox.prompt_logprobs
        ],
        finished_samples=[
            decode_pb2.SampleFinished(
                key=ended.number,
                sample_index=ended.sample_index,
                reason=convert.finish_reason_to_proto(ended.reason),
                stop_token_id=ended.stop_token_id,
            )
            for ended in outbox.ended_samples
        ],
        finished=[_finished(finished) for finished in outbox.finished],
        computing=outbox.computing,
        waiting=outbox.waiting,
    )


def _finished(finished: Finished) -> decode_pb2.RequestFinished:
    return decode_pb2.RequestFinished(
        key=finished.number,
        error=convert.error_to_proto(finished.error) if finished.error else None,
        usage=convert.usage_to_proto(finished.usage),
        instants=[
            decode_pb2.WorkerInstant(instant=name, worker_time_s=at_s)
            for name, at_s in finished.instants.items()
        ],
        num_preemptions=finished.num_preemptions,
        hand_off=convert.hand_off_to_proto(finished.hand_off) if finished.hand_off else None,
    )
