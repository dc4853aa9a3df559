"""A router in the test's own process: real gRPC, an arithmetic model, deaths on demand.

Token i of sample s is `seed + 100 * s + i`, its text "<token> ". Like a real detokenizer it holds
text back, here that of the newest token, and keeps the contract of continuation: after forced
tokens it sends what follows the text that those alone released.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from baton import convert, errors
from baton.rpc.context import remaining_s, traceparent
from baton.types import FinishReason, PositionLogprobs, Timeline, Usage
from baton.v1 import inference_pb2 as pb
from baton.v1 import inference_pb2_grpc

TIMELINE = Timeline({"received": 0.0, "finished": 0.5}, "d0", "", 0, 3, 1, 0)


class FakeInference(inference_pb2_grpc.InferenceServicer):
    """`die_after`: output tokens after which a stream is lost, once; -1: amid the prompt's
    log-probabilities, of which there are two. `refuse`: raised at the door."""

    def __init__(self, *, die_after: int | None = None, pause_s: float = 0.0) -> None:
        self.die_after = die_after
        self.pause_s = pause_s
        self.refuse: Exception | None = None
        self.requests: list[pb.GenerateRequest] = []
        self.traceparents: list[str] = []
        self.deadlines_s: list[float | None] = []
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.arrived.set()
        self.traceparents.append(traceparent(dict(context.invocation_metadata())))
        self.deadlines_s.append(remaining_s(context))
        if self.refuse is not None:
            raise self.refuse
        seed = request.sampling.seed if request.sampling.HasField("seed") else 7
        admitted = pb.Admitted(model="fake", seed=seed, num_prompt_tokens=3, weights="these")
        yield pb.GenerateResponse(request_id=request.request_id, admitted=admitted)
        try:
            async for response in self._samples(request, seed):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _samples(self, request: pb.GenerateRequest, seed: int) -> AsyncIterator[Any]:
        if request.sampling.HasField("prompt_logprobs"):
            for token_id in (1, 2):
                logprobs = convert.logprobs_to_proto(PositionLogprobs(token_id, -1.0, 1))
                yield pb.GenerateResponse(prompt_logprobs=[logprobs])
                self._die(at=-1)
        num_samples = max(1, request.sampling.n)
        forced = [len(sample.ids) for sample in request.output_token_ids] or [0] * num_samples
        for index in range(num_samples):
            for position in range(forced[index], request.sampling.max_tokens):
                self._die(at=position)
                yield pb.GenerateResponse(deltas=[self._delta(request, seed, index, position)])
                await asyncio.sleep(self.pause_s)
        usage = convert.usage_to_proto(Usage(3, 0, request.sampling.max_tokens * num_samples))
        yield pb.GenerateResponse(usage=usage, timeline=convert.timeline_to_proto(TIMELINE))

    def _die(self, *, at: int) -> None:
        if self.die_after == at:
            self.die_after = None
            raise errors.Unavailable("this router dies")

    def _delta(
        self, request: pb.GenerateRequest, seed: int, index: int, position: int
    ) -> pb.SampleDelta:
        token_id = seed + 100 * index + position
        last = position == request.sampling.max_tokens - 1
        released = [token_id - 1] if position else []
        released += [token_id] if last else []
        position_logprobs = PositionLogprobs(token_id, -0.5, 1, ((token_id, -0.5),))
        wanted = request.sampling.HasField("logprobs")
        return pb.SampleDelta(
            sample_index=index,
            text="".join(f"{each} " for each in released),
            token_ids=[token_id],
            logprobs=[convert.logprobs_to_proto(position_logprobs)] if wanted else [],
            finish_reason=convert.finish_reason_to_proto(FinishReason.LENGTH if last else None),
        )

    async def Session(self, messages: Any, context: Any) -> AsyncIterator[Any]:
        """What a router's does, over the same `Generate`, without gathering."""
        outgoing: asyncio.Queue[pb.SessionUpdate | None] = asyncio.Queue()
        running: dict[int, asyncio.Task[None]] = {}

        async def run(start: pb.SessionStart) -> None:
            try:
                async for each in self.Generate(start.request, _Inner(start)):
                    outgoing.put_nowait(pb.SessionUpdate(key=start.key, response=each))
            except errors.BatonError as error:
                message = convert.error_to_proto(error)
                outgoing.put_nowait(pb.SessionUpdate(key=start.key, error=message))

        async def read() -> None:
            async for message in messages:
                if message.HasField("start"):
                    running[message.start.key] = asyncio.create_task(run(message.start))
                else:
                    running[message.cancel.key].cancel()
            outgoing.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (update := await outgoing.get()) is not None:
                yield pb.SessionResponse(updates=[update])
        finally:
            for task in (reader, *running.values()):
                task.cancel()

    async def Tokenize(self, request: Any, context: Any) -> pb.TokenizeResponse:
        if self.refuse is not None:
            raise self.refuse
        text = request.text or "".join(each.content for each in request.chat.messages)
        return pb.TokenizeResponse(token_ids=text.encode())

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: Any
    ) -> pb.DetokenizeResponse:
        return pb.DetokenizeResponse(text=bytes(request.token_ids).decode())

    async def ListModels(self, request: Any, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[pb.Model(name="fake", max_model_len=64, vocab_size=256)]
        )


class _Inner:
    """The context of a request in a session, as far as `Generate` looks at it."""

    def __init__(self, start: pb.SessionStart) -> None:
        self._start = start

    def invocation_metadata(self) -> dict[str, str]:
        return {"traceparent": self._start.traceparent}

    def time_remaining(self) -> float | None:
        return self._start.timeout_s or None
