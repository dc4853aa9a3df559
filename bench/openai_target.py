"""Any OpenAI-compatible endpoint under load: prompts as text, streamed answers.

The protocol does not say how many tokens a message carries: one with text counts as one token. The
true totals come with the usage that is asked for, where the server sends it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import httpx

from baton import errors
from baton.types import Usage
from bench.workload import PlannedRequest, prompt_text

Api: TypeAlias = Literal["completions", "chat"]

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


@dataclass(frozen=True, slots=True)
class OpenAiSettings:
    """`base_url` ends in /v1 as a rule. `ignore_eos` is an extension that vLLM, SGLang and Baton
    know; where it is False, nothing but OpenAI's own fields is sent."""

    base_url: str
    model: str
    api: Api = "completions"
    api_key: str = ""
    ignore_eos: bool = True
    seed: int = 0


class OpenAiTarget:
    """Proxies from the environment are not used: the server is measured, not the way to it."""

    def __init__(self, settings: OpenAiSettings) -> None:
        self._settings = settings
        headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        self._http = httpx.AsyncClient(
            base_url=settings.base_url,
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def models(self) -> list[str]:
        try:
            response = await self._http.get("models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _lost(error, self._settings.base_url) from error
        if response.status_code != httpx.codes.OK:
            raise _refused(response)
        try:
            return [model["id"] for model in response.json()["data"]]
        except (ValueError, LookupError, TypeError) as error:
            raise errors.IncompatiblePeer("its answer is not a list of models") from error

    async def stream(self, request: PlannedRequest) -> AsyncGenerator[int | Usage, None]:
        path = _PATHS[self._settings.api]
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
            raise _lost(error, self._settings.base_url) from error

    async def close(self) -> None:
        await self._http.aclose()

    def _body(self, request: PlannedRequest) -> dict[str, Any]:
        settings = self._settings
        text = prompt_text(request, seed=settings.seed)
        prompt: dict[str, Any] = {"prompt": text}
        if settings.api == "chat":
            prompt = {"messages": [{"role": "user", "content": text}]}
        return {
            "model": settings.model,
            **prompt,
            "max_tokens": request.num_output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if settings.ignore_eos else {}),
        }


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of the answer, up to [DONE]; an error among them is raised."""
    async for line in response.aiter_lines():
        field, _, data = line.partition(":")
        if field != "data":
            continue  # comments, event names and the empty lines between events
        data = data.strip()
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
        except json.JSONDecodeError as error:
            raise errors.IncompatiblePeer(f"an event is not JSON: {data[:80]!r}") from error
        if "error" in chunk:
            raise _typed(chunk["error"], errors.Internal)
        yield chunk
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
