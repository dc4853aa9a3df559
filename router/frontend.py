"""The seam between the faces (gRPC, OpenAI HTTP) and the dispatcher.

A face turns what it received into a `GenerateInput`, and what `Frontend.generate` yields into its
own wire format. It knows no worker; the dispatcher knows no wire format of clients.

    Admitted, PromptLogprobs*, Deltas*, Finished          or a BatonError at any point
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from baton.types import FinishReason, PositionLogprobs, Timeline, Usage
from router.request import GenerateInput


@dataclass(frozen=True, slots=True)
class ModelCard:
    name: str
    max_model_len: int
    vocab_size: int
    created_unix_s: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """First of all: what is settled, enough for another router to continue the request. Again where other
    `weights` (their identity) take over before anything was computed."""

    request_id: str
    model: str
    seed: int
    num_prompt_tokens: int
    weights: str = ""


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Some of the positions, in order; in all one per prompt token after the first. Only where they were
    asked for."""

    positions: tuple[PositionLogprobs, ...]


@dataclass(frozen=True, slots=True)
class SampleDelta:
    """What one sample gained. `text` may lag behind `token_ids` (a character split over tokens, the
    possible start of a stop string) and never holds any part of a matched stop string.

    `finish_reason` is None while the sample goes on. Where it is STOP, either `stop` is the stop
    string that matched, or `stop_token_id` the token that ended the sample.
    """

    sample_index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop: str | None = None
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Deltas:
    deltas: tuple[SampleDelta, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """Last of all, after every sample had its finish reason."""

    usage: Usage
    timeline: Timeline


GenerateUpdate: TypeAlias = Admitted | PromptLogprobs | Deltas | Finished


_MIN_ENTRIES = 4096


def max_entries(cards: Sequence[ModelCard]) -> int:
    """The most that a list in a request may hold to be of use to any model: none takes more tokens, nor
    more messages. Small models have other lists, too."""
    return max([_MIN_ENTRIES, *(card.max_model_len for card in cards)])


class Frontend(Protocol):
    """What the dispatcher offers to the faces."""

    def models(self) -> Sequence[ModelCard]:
        """The models that can be asked for, the default one first."""
        ...

    def is_serving(self) -> bool:
        """Whether at least one worker can take a request now."""
        ...

    def token_bytes(self, model: str, token_id: int) -> bytes:
        """The bytes a token stands for in text; of a special token, its name."""
        ...

    def generate(self, request: GenerateInput) -> AsyncGenerator[GenerateUpdate, None]:
        """Checks, admits and runs one request. Closing the generator cancels it on every leg.

        Raises a BatonError, where the request is refused before the first update.
        """
        ...
