"""What a call carries beside its messages: the time left, and the trace that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import grpc

TRACEPARENT = "traceparent"

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def remaining_s(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Seconds until the caller's deadline, at least 0; None where it set none."""
    return context.time_remaining()


def traceparent(metadata: Mapping[str, str | bytes] | None) -> str:
    """The trace of a call's metadata, empty where none or malformed: as the W3C's Trace Context
    asks, a malformed one is ignored and never an error."""
    value = (metadata or {}).get(TRACEPARENT, "")
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else ""


def metadata(traceparent: str = "") -> tuple[tuple[str, str], ...]:
    """Metadata that carries the trace to the next process."""
    return ((TRACEPARENT, traceparent),) if traceparent else ()
