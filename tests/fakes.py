"""In-process stand-ins for the seams, for tests of what lies on one side of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from baton.errors import BatonError
from baton.types import FinishReason, PositionLogprobs, Timeline, Usage
from router.frontend import (
    Admitted,
    Deltas,
    Finished,
    GenerateUpdate,
    ModelCard,
    PromptLogprobs,
    SampleDelta,
)
from router.request import GenerateInput


class FakeFrontend:
    """Answers every sample with `pieces`, one token each, whose id is the piece's index.

    Remembers its requests; `error` is raised before piece `error_at`; at piece `hang_at` it waits
    for ever; `closed` is released once for every request that was closed before its end.
    """

    def __init__(self, pieces: Sequence[str] = ("Hello", " ", "world")) -> None:
        self.pieces = tuple(pieces)
        self.requests: list[GenerateInput] = []
        self.error: Exception | None = None
        self.error_at = -1  # before Admitted
        self.hang_at: int | None = None
        self.serving = True
        self.num_prompt_messages = 1  # of prompt log-probabilities
        self.closed = asyncio.Semaphore(0)
        self.reached = asyncio.Event()  # a request hangs

    def models(self) -> Sequence[ModelCard]:
        return [ModelCard("tiny", 64, 100, 7), ModelCard("org/other", 32, 100, 8)]

    def is_serving(self) -> bool:
        return self.serving

    def token_bytes(self, model: str, token_id: int) -> bytes:
        if model not in ("tiny", "org/other"):
            return b""
        return self.pieces[token_id].encode() if token_id < len(self.pieces) else b"\xf0\x9f"

    async def generate(self, request: GenerateInput) -> AsyncGenerator[GenerateUpdate, None]:
        self.requests.append(request)
        ended = False
        try:
            await self._trouble(-1)
            yield Admitted(request.request_id, request.model or "tiny", 1, 2)
            if request.sampling.prompt_logprobs is not None:
                for _ in range(self.num_prompt_messages):
                    yield PromptLogprobs((_logprobs(1),))
            n = request.sampling.n or 1
            for step in range(len(self.pieces)):
                await self._trouble(step)
                yield Deltas(tuple(self._delta(request, i, step) for i in range(n)))
            yield Finished(Usage(2, 1, n * len(self.pieces)), _TIMELINE)
            ended = True
        except (BatonError, RuntimeError):
            ended = True
            raise
        finally:
            if not ended:
                self.closed.release()

    async def _trouble(self, step: int) -> None:
        if self.error is not None and self.error_at == step:
            raise self.error
        if self.hang_at == step:
            self.reached.set()
            await asyncio.Event().wait()

    def _delta(self, request: GenerateInput, sample_index: int, step: int) -> SampleDelta:
        is_last = step == len(self.pieces) - 1
        stop = request.sampling.stop[0] if request.sampling.stop and is_last else None
        reason = FinishReason.STOP if stop else FinishReason.LENGTH
        return SampleDelta(
            sample_index,
            self.pieces[step],
            (step,),
            () if request.sampling.logprobs is None else (_logprobs(step),),
            reason if is_last else None,
            stop,
        )


def _logprobs(token_id: int) -> PositionLogprobs:
    return PositionLogprobs(token_id, -0.5, 1, ((token_id, -0.5), (99, float("-inf"))))


_TIMELINE = Timeline({"received": 0.0, "finished": 0.5}, "d0", "p0", 1, 1, 1, 0)
