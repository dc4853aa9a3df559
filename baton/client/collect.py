"""Puts the deltas of a stream together to a `Generation`."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.client.results import Delta, Generation, Sample
from baton.client.stream import AsyncStream
from baton.errors import Internal
from baton.types import PositionLogprobs


@dataclass(slots=True)
class _Parts:
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    last: Delta | None = None

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.last = delta

    def sample(self) -> Sample:
        if self.last is None or self.last.finish_reason is None:
            raise Internal("the stream ended with a sample unfinished")
        return Sample(
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason=self.last.finish_reason,
            logprobs=tuple(self.logprobs),
            stop=self.last.stop,
            stop_token_id=self.last.stop_token_id,
        )


async def collect(stream: AsyncStream) -> Generation:
    """Reads the stream to its end. Raises the request's typed error."""
    parts: dict[int, _Parts] = {}
    async for delta in stream:
        parts.setdefault(delta.sample_index, _Parts()).add(delta)
    if stream.usage is None or stream.timeline is None or not parts:
        raise Internal("the stream ended before its request did")
    return Generation(
        request_id=stream.request_id,
        model=stream.model,
        seed=stream.seed,
        samples=tuple(parts[index].sample() for index in sorted(parts)),
        usage=stream.usage,
        timeline=stream.timeline,
        prompt_logprobs=stream.prompt_logprobs,
    )
