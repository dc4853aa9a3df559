"""What may be asked of a draw: the range of every sampling value. Pure, and one for all doors.

The router checks what clients send, a worker what routers and decode workers send: a value out of range
would cost its sample the draw, and a large one time or memory that everybody shares. Penalties,
temperatures and biases are bounded so that fp32 keeps every logit finite.

Every refusal is an `InvalidArgument` that names the field as the gRPC API spells it (`sampling.top_p`)
and says what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from baton.errors import InvalidArgument

MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256  # of one stop string; bounds the text that is held back while streaming
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024
MAX_LOGIT_BIAS_VALUE = 100.0
MAX_TEMPERATURE = 1e6  # far above what is still told from a uniform draw
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
MAX_PENALTY = 2.0
MAX_SEED = 2**64 - 1


class Sampling(Protocol):
    """Sampling values as sent (None where absent) or resolved."""

    @property
    def max_tokens(self) -> int | None: ...
    @property
    def min_tokens(self) -> int | None: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def repetition_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def presence_penalty(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def logit_bias(self) -> Mapping[int, float]: ...
    @property
    def stop(self) -> tuple[str, ...]: ...
    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...
    @property
    def logprobs(self) -> int | None: ...
    @property
    def prompt_logprobs(self) -> int | None: ...
    @property
    def n(self) -> int | None: ...


def check_ranges(sampling: Sampling) -> None:
    """All that can be said without a model. Whatever one of the numbers multiplies comes after this."""
    _check_int("max_tokens", sampling.max_tokens, 1)
    _check_int("min_tokens", sampling.min_tokens, 0)
    _check_int("top_k", sampling.top_k, -1, note="0 or -1 is off")
    _check_int("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    _check_int("prompt_logprobs", sampling.prompt_logprobs, 0, MAX_LOGPROBS)
    _check_int("n", sampling.n, 1, MAX_N)
    _check_int("seed", sampling.seed, 0, MAX_SEED)
    _check_float("temperature", sampling.temperature, 0.0, MAX_TEMPERATURE)
    _check_float("top_p", sampling.top_p, 0.0, 1.0, open_low=True)
    _check_float("min_p", sampling.min_p, 0.0, 1.0)
    _check_float(
        "repetition_penalty",
        sampling.repetition_penalty,
        MIN_REPETITION_PENALTY,
        MAX_REPETITION_PENALTY,
    )
    _check_float("frequency_penalty", sampling.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_float("presence_penalty", sampling.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
    _check_count("stop", len(sampling.stop), MAX_STOP_STRINGS)
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidArgument(
                f"must have 1 to {MAX_STOP_CHARS} characters, has {len(stop)}",
                field=f"sampling.stop[{index}]",
            )
    _check_count("stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
    _check_count("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIAS)
    for token_id, bias in sampling.logit_bias.items():
        name = f"logit_bias[{token_id}]"
        _check_float(name, bias, -MAX_LOGIT_BIAS_VALUE, MAX_LOGIT_BIAS_VALUE)


def check_sampling(sampling: Sampling, vocab_size: int) -> None:
    """The ranges, and that every token that is named is one of the vocabulary."""
    check_ranges(sampling)
    check_token_ids(sampling.stop_token_ids, vocab_size, "sampling.stop_token_ids")
    check_token_ids(tuple(sampling.logit_bias), vocab_size, "sampling.logit_bias")


def check_token_ids(token_ids: Sequence[int], vocab_size: int, field: str) -> None:
    # min and max run in C: a prompt of 100,000 ids is checked in about 2 ms
    if not token_ids or (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        return
    index, token_id = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t < vocab_size)
    raise InvalidArgument(
        f"token id {token_id} at index {index} is outside of the vocabulary, 0 to {vocab_size - 1}",
        field=field,
    )


def _check_count(name: str, count: int, maximum: int) -> None:
    if count > maximum:
        raise InvalidArgument(
            f"may have at most {maximum} entries, has {count}", field=f"sampling.{name}"
        )


def _check_int(
    name: str, value: int | None, low: int, high: int | None = None, *, note: str = ""
) -> None:
    if value is None or (value >= low and (high is None or value <= high)):
        return
    allowed = f"at least {low}" if high is None else f"from {low} to {high}"
    note = f" ({note})" if note else ""
    raise InvalidArgument(f"must be {allowed}{note}, is {value}", field=f"sampling.{name}")


def _check_float(
    name: str, value: float | None, low: float, high: float, *, open_low: bool = False
) -> None:
    if value is None:
        return
    above_low = value > low if open_low else value >= low
    if above_low and value <= high:  # NaN compares False
        return
    bound = "above" if open_low else "at least"
    raise InvalidArgument(
        f"must be a finite number {bound} {low:g} and at most {high:g}, is {value}",
        field=f"sampling.{name}",
    )
