"""Reads a request's body: bounded in size, UTF-8, one JSON object, no key twice.

NaN and Infinity pass here, so that the check of the field that holds one can name it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from baton.errors import InvalidArgument
from router.http import json_body
from router.http.disconnect import ClientGone

MAX_BODY_BYTES = 16 * 2**20
# A body that is too large is read to its end, up to here, and dropped: a client that is still
# sending would see a reset connection in place of the answer.
MAX_DRAINED_BYTES = 256 * 2**20


class BodyTooLarge(Exception):
    """Answered with 413, which no error of Baton's own maps to."""


async def read_body(request: Request, slow_client_s: float | None = None) -> bytes:
    """Raises ClientGone where for `slow_client_s` nothing more of the body came."""
    chunks: list[bytes] = []
    num_bytes = 0
    stream = request.stream()
    while (chunk := await _next(stream, slow_client_s)) is not None:
        num_bytes += len(chunk)
        if num_bytes <= MAX_BODY_BYTES:
            chunks.append(chunk)
        elif num_bytes > MAX_DRAINED_BYTES:
            break
        else:
            chunks.clear()
    if num_bytes > MAX_BODY_BYTES:
        raise BodyTooLarge
    return b"".join(chunks)


async def _next(stream: AsyncIterator[bytes], slow_client_s: float | None) -> bytes | None:
    try:
        async with asyncio.timeout(slow_client_s):
            return await anext(stream, None)
    except TimeoutError:
        raise ClientGone from None


def read_json_object(data: bytes, max_entries: int) -> dict[str, Any]:
    """`max_entries`: of an array, the most that could be of use. On any thread."""
    try:
        value = json_body.read(data.decode("utf-8"), _unique, max_entries)
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"the body is not valid UTF-8 at byte {error.start}", field="body"
        ) from error
    except RecursionError as error:
        raise InvalidArgument("the body is nested too deeply", field="body") from error
    except ValueError as error:
        raise InvalidArgument(f"the body is not valid JSON: {error}", field="body") from error
    if not isinstance(value, dict):
        raise InvalidArgument("the body must be a JSON object", field="body")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidArgument("is there twice", field=name)
        found[name] = value
    return found
