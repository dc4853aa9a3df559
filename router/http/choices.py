"""Collects the updates of one call into its choices, and merges those of several prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from baton.types import FinishReason, PositionLogprobs, Timeline, Usage
from router.frontend import (
    Admitted,
    Deltas,
    Finished,
    Frontend,
    GenerateUpdate,
    PromptLogprobs,
    SampleDelta,
)
from router.http.call import Call

_AS_LOGPROB = 4

FINISH_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.ERROR: "error",
}


@dataclass(slots=True)
class Choice:
    """One sample, as far as it has come. `stop_reason`: the stop string or token that ended it."""

    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: list[PositionLogprobs] | None = None  # shared by a prompt's samples
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, delta: SampleDelta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self.finish_reason = FINISH_REASONS[delta.finish_reason]
            self.stop_reason = stop_reason(delta)


@dataclass(slots=True)
class Collected:
    """All that a call gave. `finished`: of every prompt that came to its end."""

    choices: list[Choice]
    model: str = ""
    finished: list[Finished] = field(default_factory=list)

    @property
    def num_shown(self) -> int:
        """Tokens, and log-probabilities as so many: how long writing it takes, see `OffLoop.run`."""
        num_shown = 0
        for choice in self.choices:
            num_shown += len(choice.token_ids)
            for positions in (choice.logprobs, choice.prompt_logprobs):
                if positions:
                    num_shown += _AS_LOGPROB * len(positions) * (1 + len(positions[0].top))
        return num_shown

    def add(self, prompt_index: int, update: GenerateUpdate, n: int) -> None:
        match update:
            case Deltas(deltas):
                for delta in deltas:
                    self.choices[prompt_index * n + delta.sample_index].add(delta)
            case Admitted():
                self.model = update.model
            case PromptLogprobs(positions):
                choices = self.choices[prompt_index * n : (prompt_index + 1) * n]
                shared = choices[0].prompt_logprobs or []
                shared += positions  # they come in several messages
                for choice in choices:
                    choice.prompt_logprobs = shared
            case Finished():
                self.finished.append(update)


def stop_reason(delta: SampleDelta) -> str | int | None:
    return delta.stop_token_id if delta.stop is None else delta.stop


async def collect(frontend: Frontend, call: Call) -> Collected:
    collected = Collected([Choice(index) for index in range(len(call.inputs) * call.n)])
    async with aclosing(updates_of(frontend, call)) as updates:
        async for prompt_index, update in updates:
            collected.add(prompt_index, update, call.n)
    return collected


async def updates_of(
    frontend: Frontend, call: Call
) -> AsyncGenerator[tuple[int, GenerateUpdate], None]:
    """(prompt index, update) of all prompts at once. Closing it closes, so cancels, all of them; so
    does the first error, which is raised."""
    if len(call.inputs) == 1:
        async with aclosing(frontend.generate(call.inputs[0])) as updates:
            async for update in updates:
                yield 0, update
        return
    generators = [frontend.generate(request) for request in call.inputs]
    waiting = {_next(generator): index for index, generator in enumerate(generators)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index = waiting[task]
                one = task.result()
                del waiting[task]
                if one is not None:
                    waiting[_next(generators[index])] = index
                    yield index, one
    finally:
        await _close(list(waiting), generators)


def _next(
    generator: AsyncGenerator[GenerateUpdate, None],
) -> asyncio.Task[GenerateUpdate | None]:
    async def step() -> GenerateUpdate | None:
        return await anext(generator, None)

    return asyncio.create_task(step())


async def _close(
    waiting: list[asyncio.Task[GenerateUpdate | None]],
    generators: Sequence[AsyncGenerator[GenerateUpdate, None]],
) -> None:
    for task in waiting:
        task.cancel()
    # errors of the others are not lost: the first one, which brought us here, is the call's answer
    await asyncio.gather(*waiting, return_exceptions=True)
    for generator in generators:
        await generator.aclose()


def show_usage(finished: Sequence[Finished]) -> dict[str, Any]:
    usages: list[Usage] = [one.usage for one in finished]
    num_prompt = sum(usage.num_prompt_tokens for usage in usages)
    num_output = sum(usage.num_output_tokens for usage in usages)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": sum(u.num_cached_tokens for u in usages)},
    }


def show_timeline(timeline: Timeline) -> dict[str, Any]:
    """Where the time went, as gRPC's final message says it; seconds since the router had the
    call."""
    shown: dict[str, Any] = {
        "events": dict(timeline.events),
        "decode_worker": timeline.decode_worker,
        "prefill_worker": timeline.prefill_worker,
        "num_cached_tokens": timeline.num_cached_tokens,
        "num_computed_tokens": timeline.num_computed_tokens,
        "num_attempts": timeline.num_attempts,
        "num_preemptions": timeline.num_preemptions,
        "predicted_local_ttft_s": timeline.predicted_local_ttft_s,
        "predicted_remote_ttft_s": timeline.predicted_remote_ttft_s,
    }
    if timeline.hand_off is not None:
        shown["transfer_bytes"] = timeline.hand_off.transfer_bytes
        shown["transfer_s"] = timeline.hand_off.transfer_s
        shown["transfer_exposed_s"] = timeline.hand_off.transfer_exposed_s
    return shown
