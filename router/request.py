"""What a client asks for, as frozen values, before anything is checked or resolved.

Both faces (gRPC and OpenAI HTTP) build a `GenerateInput`; `router.validation` checks it. An unset
sampling value is None and means the model's generation_config, then the neutral value. Nothing here
knows a wire format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `name` tells speakers of one role apart, where it was sent."""

    role: str
    content: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    messages: tuple[Message, ...]


TokenIds: TypeAlias = tuple[int, ...]

# Text, token ids, a conversation, or nothing sent at all.
Prompt: TypeAlias = str | TokenIds | Chat | None


@dataclass(frozen=True, slots=True)
class SamplingInput:
    """`baton.types.SamplingParams` as sent: any field may be absent (None) or out of range."""

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: TokenIds = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What an unset value means: what generation_config.json says, else the neutral value."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class GenerateInput:
    """One request. `output_token_ids` (a continuation): per sample, the tokens already produced, with
    `weights` of this identity, or of any where it is empty.

    `request_id` and `model` may be empty: the router chooses. `timeout_s` is the time that was left
    until the deadline when the request came in; None means no deadline. `traceparent`: the W3C trace that
    it belongs to.
    """

    prompt: Prompt
    sampling: SamplingInput = field(default_factory=SamplingInput)
    request_id: str = ""
    model: str = ""
    output_token_ids: tuple[TokenIds, ...] = ()
    tenant: str = ""
    priority: int = 0
    detokenize: bool = True
    timeout_s: float | None = None
    traceparent: str = ""
    weights: str = ""
