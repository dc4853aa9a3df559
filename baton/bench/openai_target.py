"""Any OpenAI-compatible endpoint under load: prompts as text, streamed answers.

The protocol does not say how many tokens a message carries: one with text counts as one token. The
true totals come with the usage that is asked for, where the server sends it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx

from baton import errors
from baton.bench.target import Api, ServerSettings
from baton.bench.workload import PlannedRequest, prompt_text
from baton.types import Usage

_PATHS: dict[Api, str] = {"completions": "completions", "chat": "chat/completions"}
_CONNECT_TIMEOUT_S = 10.0
_BY_STATUS: dict[int, type[errors.BatonError]] = {
    400: errors.InvalidArgument,
    401: errors.Unauthenticated,
    403: errors.PermissionDenied,
    404: errors.NotFound,
    408: errors.DeadlineExceeded,
    422: errors.InvalidArgument,
    429: errors.Overloaded,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


class OpenAiTarget:
    """Proxies from the environment are not used: the server is measured, not the way to it."""

    max_model_len: int | None = None

    def __init__(
        self, server: ServerSettings, http: httpx.AsyncClient, model: str, seed: int
    ) -> None:
        self.model = model
        self._server = server
        self._http = http
        self._seed = seed

    @classmethod
    async def connect(cls, server: ServerSettings, seed: int) -> OpenAiTarget:
        """Where no model is named, the first that the server lists."""
        try:
            http = httpx.AsyncClient(
                base_url=server.base_url,
                headers={"Authorization": f"Bearer {server.api_key}"} if server.api_key else {},
                timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
                limits=httpx.Limits(max_connections=None),
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise _lost(error, server.base_url) from error
        try:
            return cls(server, http, server.model or await _first_model(http), seed)
        except BaseException:
            await http.aclose()
            raise

    async def stream(self, request: PlannedRequest) -> AsyncGenerator[int | Usage, None]:
        path = _PATHS[self._server.api]
        try:
            async with self._http.stream("POST", path, json=self._body(request)) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _refused(response)
                async for chunk in _chunks(response):
                    if _has_text(chunk):
                        yield 1
                    if chunk.get("usage"):
                        yield _usage(chunk["usage"])
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _lost(error, self._server.base_url) from error

    async def close(self) -> None:
        await self._http.aclose()

    def _body(self, request: PlannedRequest) -> dict[str, Any]:
        text = prompt_text(request, seed=self._seed)
        prompt: dict[str, Any] = {"prompt": text}
        if self._server.api == "chat":
            prompt = {"messages": [{"role": "user", "content": text}]}
        return {
            "model": self.model,
            **prompt,
            "max_tokens": request.num_output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if self._server.ignore_eos else {}),
        }


async def _first_model(http: httpx.AsyncClient) -> str:
    try:
        response = await http.get("models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _lost(error, str(http.base_url)) from error
    if response.status_code != httpx.codes.OK:
        raise _refused(response)
    try:
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError) as error:
        raise errors.IncompatiblePeer(f"{http.base_url} lists no models") from error


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of the answer, up to [DONE]; an error among them is raised. Read to its very end: only
    then can the connection carry the next request, as it does for every client."""
    done = False
    async for line in response.aiter_lines():
        field, _, data = line.partition(":")
        if field != "data":
            continue  # comments, event names and the empty lines between events
        data = data.strip()
        done = done or data == "[DONE]"
        if done:
            continue
        try:
            chunk = json.loads(data)
        except json.JSONDecodeError as error:
            raise errors.IncompatiblePeer(f"an event is not JSON: {data[:80]!r}") from error
        if "error" in chunk:
            raise _typed(chunk["error"], errors.Internal)
        yield chunk
    if not done:
        raise errors.Unavailable("the stream ended without [DONE]")


def _has_text(chunk: dict[str, Any]) -> bool:
    """Whether it carries a token: the first chunk of a chat names the role alone, the last the
    finish reason or the usage."""
    for choice in chunk.get("choices", ()):
        delta = choice.get("delta", choice)
        if any(delta.get(name) for name in ("text", "content", "reasoning_content")):
            return True
    return False


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        num_prompt_tokens=usage.get("prompt_tokens", 0),
        num_cached_tokens=details.get("cached_tokens") or 0,
        num_output_tokens=usage.get("completion_tokens", 0),
    )


def _refused(response: httpx.Response) -> errors.BatonError:
    kind = _BY_STATUS.get(response.status_code, errors.Internal)
    try:
        body = response.json()
    except ValueError:
        return kind(f"HTTP {response.status_code}: {response.text[:200]}")
    return _typed(body.get("error", body) if isinstance(body, dict) else body, kind)


def _typed(body: Any, default: type[errors.BatonError]) -> errors.BatonError:
    """By the error's own code where it is one of Baton's."""
    if not isinstance(body, dict):
        return default(str(body)[:200])
    message = str(body.get("message", body))[:200]
    return errors.BY_CODE.get(str(body.get("code")), default)(message)


def _lost(error: Exception, base_url: str) -> errors.BatonError:
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return errors.InvalidArgument(f"{base_url!r}: {error}", field="base-url")
    return errors.Unavailable(f"{base_url}: {str(error) or type(error).__name__}")
