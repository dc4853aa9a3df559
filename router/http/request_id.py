"""Gives every answer the `X-Request-Id` of its request: the caller's own, or a new one.

Proxies and tracing systems have ids of many kinds. Inside of Baton, one has the characters and the length
that fit into logs and file names; the answer gives the caller's own back.
"""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "x-request-id"
_UNUSABLE = re.compile(r"[^A-Za-z0-9._:\-]")
_MAX_CHARS = 120  # what is left of the allowed ones is for the number of a prompt


def usable_request_id(own: str) -> str:
    return _UNUSABLE.sub("_", own)[:_MAX_CHARS]


class RequestIdMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER) or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
