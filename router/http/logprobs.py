"""Log-probabilities in the three shapes that clients know: chat's, the older completions', and
vLLM's for prompts.

A token that is not UTF-8 by itself is written `bytes:\\xf0\\x9f`, as OpenAI does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from baton.types import PositionLogprobs


class TokenNames:
    """The bytes of tokens. `model`: whose they are; known once the call's first request is admitted, also
    where the call names none."""

    def __init__(self, token_bytes: Callable[[str, int], bytes]) -> None:
        self._token_bytes = token_bytes
        self.model = ""

    def __call__(self, token_id: int) -> bytes:
        return self._token_bytes(self.model, token_id)


_LOWEST = -9999.0  # JSON has no -inf; the value that OpenAI's API gives


def token_name(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(positions: Sequence[PositionLogprobs], names: TokenNames) -> dict[str, Any]:
    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        data = names(token_id)
        return {"token": token_name(data), "logprob": _finite(logprob), "bytes": list(data)}

    content = [
        shown(position.token_id, position.logprob)
        | {"top_logprobs": [shown(token_id, logprob) for token_id, logprob in position.top]}
        for position in positions
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    positions: Sequence[PositionLogprobs], names: TokenNames, text_offset: int
) -> tuple[dict[str, Any], int]:
    """Also the offset, in characters, at which the next token starts."""
    tokens: list[str] = []
    offsets: list[int] = []
    tops: list[dict[str, float]] = []
    for position in positions:
        name = token_name(names(position.token_id))
        tokens.append(name)
        offsets.append(text_offset)
        text_offset += len(name)
        top = {token_name(names(token_id)): _finite(logprob) for token_id, logprob in position.top}
        tops.append(top | {name: _finite(position.logprob)})  # the chosen one is always among them
    shown = {
        "tokens": tokens,
        "token_logprobs": [_finite(position.logprob) for position in positions],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
    return shown, text_offset


def prompt_logprobs(
    positions: Sequence[PositionLogprobs], names: TokenNames
) -> list[dict[str, Any] | None]:
    """Per prompt token, None for the first: token id -> its log-probability and text."""

    def shown(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        name = token_name(names(token_id))
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": name}

    found: list[dict[str, Any] | None] = [None]
    for position in positions:
        entries = {
            str(token_id): shown(token_id, logprob, rank)
            for rank, (token_id, logprob) in enumerate(position.top, 1)
        }
        entries[str(position.token_id)] = shown(position.token_id, position.logprob, position.rank)
        found.append(entries)
    return found


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST
