"""What the decode role hears and what it answers: events, orders, words to routers. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.errors import BatonError
from baton.types import (
    FinishReason,
    HandOffReport,
    PositionLogprobs,
    PrefillChoice,
    SamplingParams,
    Usage,
)

RouterId = int  # one stream between a router and this worker
Key = tuple[RouterId, int]  # names a request: the router's stream and the number it chose


# Events


@dataclass(frozen=True, slots=True)
class Start:
    """`output_token_ids`: per sample, forced. `deadline_s` on this process's monotonic clock. `suspected`: a
    worker died while it computed this request."""

    key: Key
    request_id: str
    attempt: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[Sequence[int]]
    params: SamplingParams
    eos_token_ids: Sequence[int]
    salt: bytes
    priority: int = 0
    deadline_s: float | None = None
    prefill: PrefillChoice | None = None
    suspected: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends one sample, or where `sample_index` is None the whole request."""

    key: Key
    sample_index: int | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What the router said about this request could not be understood."""

    key: Key
    error: BatonError


@dataclass(frozen=True, slots=True)
class RouterLost:
    router: RouterId


@dataclass(frozen=True, slots=True)
class Reroute:
    """The router's answer to `PrefillLost`; None: prefill here."""

    key: Key
    prefill: PrefillChoice | None


@dataclass(frozen=True, slots=True)
class FirstToken:
    sample_index: int
    token_id: int
    logprobs: PositionLogprobs | None = None


@dataclass(frozen=True, slots=True)
class PrefillAccount:
    """What a prefill came to, before its blocks are here: nothing in `report` is of the transfer."""

    report: HandOffReport
    instants: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """What the prefill worker drew, one token per sample."""

    transfer: int
    tokens: Sequence[FirstToken]
    prompt_logprobs: Sequence[PositionLogprobs]
    account: PrefillAccount


@dataclass(frozen=True, slots=True)
class HandOffDone:
    """Every block of the transfer is here and verified. `instants`: of the transfer alone."""

    transfer: int
    report: HandOffReport
    instants: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class HandOffFailed:
    """The transfer will not complete. The KV of the first `num_verified` tokens is good. `fenced`:
    it is proved that nobody writes any more. `computing`: the prefill worker is lost, and may have been at
    work on it."""

    transfer: int
    error: BatonError
    num_verified: int
    fenced: bool
    computing: bool = False


@dataclass(frozen=True, slots=True)
class Fenced:
    """It is proved that nobody writes the blocks of this transfer any more."""

    transfer: int


@dataclass(frozen=True, slots=True)
class LendOver:
    """The blocks that were lent for this transfer are not read any more."""

    transfer: int


Event = (
    Start
    | Cancel
    | Unreadable
    | RouterLost
    | Reroute
    | FirstTokens
    | HandOffDone
    | HandOffFailed
    | Fenced
    | LendOver
)


# Orders to the hand-off


@dataclass(frozen=True, slots=True)
class AskPrefill:
    """Ask `prefill` to compute `token_ids` and to write the KV of its blocks from `first_block` on into
    `destination_blocks` of this pool. `lent_blocks`: the blocks of this pool before `first_block`, where
    it may have them; `LendOver` says when they are read no more."""

    transfer: int
    prefill: PrefillChoice
    request_id: str
    attempt: int
    token_ids: Sequence[int]
    num_prompt_tokens: int
    first_sample_index: int
    params: SamplingParams
    eos_token_ids: Sequence[int]
    salt: bytes
    priority: int
    deadline_s: float | None
    first_block: int
    destination_blocks: Sequence[int]
    lent_blocks: Sequence[int] = ()
    suspected: bool = False


@dataclass(frozen=True, slots=True)
class Abandon:
    """Nobody wants this transfer any more: stop it, and say `Fenced` once that is proved."""

    transfer: int


Order = AskPrefill | Abandon


# Commands to routers


@dataclass(frozen=True, slots=True)
class SampleEnded:
    number: int
    sample_index: int
    reason: FinishReason
    stop_token_id: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last word on a request. `instants` are on this process's monotonic clock."""

    number: int
    error: BatonError | None
    usage: Usage
    instants: Mapping[str, float]
    num_preemptions: int
    hand_off: HandOffReport | None = None


class PrefillLost(NamedTuple):
    """`computing`: the prefill worker may have been at work on it when it was lost."""

    number: int
    error: BatonError
    computing: bool


@dataclass(slots=True)
class Outbox:
    """What one step has to say to one router: columns of tokens, and what ended."""

    keys: list[int] = field(default_factory=list)
    sample_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, PositionLogprobs]] = field(default_factory=list)  # (row, ...)
    prompt_logprobs: list[tuple[int, Sequence[PositionLogprobs]]] = field(default_factory=list)
    ended_samples: list[SampleEnded] = field(default_factory=list)
    prefill_lost: list[PrefillLost] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    computing: list[int] = field(default_factory=list)  # in the coming step, and not in the last
    waiting: list[int] = field(default_factory=list)  # not in the coming step


@dataclass(frozen=True, slots=True)
class Commands:
    """`first`: all of it leaves before the step that follows begins, which may be this worker's last."""

    orders: Sequence[Order]
    outboxes: Mapping[RouterId, Outbox]
    first: bool = False
