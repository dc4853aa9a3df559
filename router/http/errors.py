"""Baton's errors as OpenAI's error bodies, with the status of `baton.errors.STATUS`."""

from __future__ import annotations

import math
import re
from typing import Any

from starlette.responses import JSONResponse

from baton.errors import STATUS, BatonError, Draining

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}
_PARAMS = {"text": "prompt", "token_ids": "prompt", "tenant": "X-Baton-Tenant"}


def param_of(field: str) -> str | None:
    """The field as OpenAI's API spells it: there, sampling values are not a message of their
    own."""
    if not field:
        return None
    name = re.sub(r"^(sampling|chat)\.", "", field)
    return _PARAMS.get(name, name)


def error_body(error: BatonError, *, status: int | None = None) -> dict[str, Any]:
    status = status or STATUS[type(error)].http
    default = "invalid_request_error" if status < 500 else "server_error"
    param = param_of(_portable(error.field))
    message = _portable(error.message)
    return {
        "error": {
            "message": f"{param}: {message}" if param else message,
            "type": _TYPES.get(status, default),
            "param": param,
            "code": error.code,
        }
    }


def error_response(error: BatonError, *, status: int | None = None) -> JSONResponse:
    """`status` where HTTP has a better one than the error's own (413)."""
    status = status or STATUS[type(error)].http
    headers = {}
    if error.retry_after_s > 0:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))  # whole seconds (RFC 9110)
    if isinstance(error, Draining):
        headers["Connection"] = "close"  # the next one leads to whoever listens then
    return JSONResponse(error_body(error, status=status), status_code=status, headers=headers)


def _portable(text: str) -> str:
    """What the client sent may hold lone surrogates, which no UTF-8 can: they are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
