"""The nouns that every process shares, as frozen values. No wire format, no clock, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, NewType

from baton.prefill_cost import PrefillCost

BlockId = NewType("BlockId", bytes)  # 16 bytes, see baton.block_id


class FinishReason(IntEnum):
    """Why a sample ended; the numbers are those of baton.v1.FinishReason."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4


class Role(IntEnum):
    """The numbers are those of baton.v1.Role."""

    PREFILL = 1
    DECODE = 2


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw tokens: resolved, so nothing is optional but by meaning.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and penalties of 1, 0, 0 are neutral.
    `logprobs` and `prompt_logprobs`: None for none, k for the chosen token and the k most likely.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log-probabilities at one position; `rank` 1 is the most likely token. `top`: (token, logprob)."""

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int


class PoolId(NamedTuple):  # is a key wherever requests go by: a tuple hashes fastest
    """The unit of cache, batch, events, load and hand-off."""

    worker_id: str
    dp_rank: int = 0

    def __str__(self) -> str:
        return f"{self.worker_id}/{self.dp_rank}" if self.dp_rank else self.worker_id


class Weights(NamedTuple):  # a key, too
    """One set of weights under a model's name. While a model is updated there are two: what one has computed
    is worth nothing to the other, and an answer begun with one is never continued with the other."""

    model: str
    identity: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`identity` must be equal for two workers to be paired; the rest is the layout a plan converts."""

    identity: str
    block_size: int
    tensor_parallel_size: int
    kv_dtype: str
    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when it registers. `incarnation` grows with every restart."""

    worker_id: str
    incarnation: int
    role: Role
    address: str
    model: str
    fingerprint: Fingerprint
    max_model_len: int
    vocab_size: int
    num_dp_ranks: int
    num_total_blocks: int
    package_version: str
    transports: tuple[str, ...]
    host_id: str
    pid: int

    @property
    def weights(self) -> Weights:
        return Weights(self.model, self.fingerprint.identity)


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """A pool's momentary load. Free + held + cached + quarantined = total, where `num_free_blocks`
    counts only blocks without content and `num_cached_blocks` those that nobody holds."""

    pool: PoolId
    incarnation: int
    num_running_requests: int
    num_waiting_requests: int
    num_waiting_tokens: int
    num_total_blocks: int
    num_free_blocks: int
    num_held_blocks: int
    num_cached_blocks: int
    num_quarantined_blocks: int
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    prefill_cost: PrefillCost | None = None  # None before the first prefill
    decode_stream_s: float = 0.0  # what a stream more adds to a decode step; 0 until known


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """The prefill pool that the router chose for one attempt. `lend`: the decode worker gives it the
    prefix that it has, so that it need not be computed again."""

    pool: PoolId
    incarnation: int
    address: str
    lend: bool = False


@dataclass(frozen=True, slots=True)
class HandOffReport:
    """What one hand-off cost. Times in seconds: for `transfer_s` the link was busy with it, and
    `transfer_exposed_s` is what the request waited after its prefill; the rest was hidden behind it.
    `num_resent_blocks` arrived wrong and were sent again; the KV of `num_lent_tokens` had come from the
    decode worker before."""

    prefill_worker: str
    transfer_bytes: int
    transfer_s: float
    transfer_exposed_s: float
    num_prefill_cached_tokens: int
    num_resent_blocks: int = 0
    num_lent_tokens: int = 0
    transport: str = ""
    num_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where one request's time went. `events`: instant -> seconds since the router received it."""

    events: Mapping[str, float]
    decode_worker: str
    prefill_worker: str
    num_cached_tokens: int
    num_computed_tokens: int
    num_attempts: int
    num_preemptions: int
    predicted_local_ttft_s: float | None = None
    predicted_remote_ttft_s: float | None = None
    hand_off: HandOffReport | None = None
