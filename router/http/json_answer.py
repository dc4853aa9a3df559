"""Writes a long answer without keeping the interpreter to itself, as `router.http.json_body` reads one: the
interpreter walks through what is nested, C writes the pieces."""

from __future__ import annotations

import json
from typing import Any

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_DEPTH = 6  # a token's log-probabilities lie so deep


def write(value: Any) -> bytes:
    """The bytes that `json.dumps` gives in its most compact form."""
    return _written(value, _DEPTH).encode()


def _written(value: Any, depth: int) -> str:
    match value:
        case dict() if depth:
            items = (f"{_encode(key)}:{_written(each, depth - 1)}" for key, each in value.items())
            return "{" + ",".join(items) + "}"
        case list() if depth:
            return "[" + ",".join([_written(each, depth - 1) for each in value]) + "]"
    return _encode(value)
