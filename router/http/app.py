"""The OpenAI-compatible HTTP face, over a `Frontend`.

    POST /v1/chat/completions   POST /v1/completions   GET /v1/models   GET /v1/models/{name}
    GET /health                 GET /metrics

It knows neither workers nor tokens. A bearer token is accepted and not looked at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from baton.errors import (
    BatonError,
    Draining,
    Internal,
    InvalidArgument,
    NotFound,
    Unavailable,
    UnknownModel,
)
from router.frontend import Frontend, ModelCard, max_entries
from router.http.answer import Answer, EventStream, answer_whole
from router.http.body import (
    MAX_BODY_BYTES,
    BodyTooLarge,
    read_body,
    read_json_object,
)
from router.http.call import Call, Caller, read_caller
from router.http.chat import ChatAnswer, read_chat
from router.http.completions import CompletionAnswer, read_completion
from router.http.disconnect import ClientGone
from router.http.errors import error_response
from router.http.in_flight import InFlight
from router.http.logprobs import TokenNames
from router.http.request_id import RequestIdMiddleware
from router.off_loop import OffLoop


def create_app(
    frontend: Frontend,
    registry: CollectorRegistry,
    slow_client_s: float | None = None,
    off_loop: OffLoop | None = None,
    in_flight: InFlight | None = None,
) -> Starlette:
    """`registry`: what /metrics shows. `slow_client_s`: a client that for this long sends nothing of
    its body is given up; None for no limit. `off_loop`: where long bodies are read. `in_flight`: of
    whoever is to end its requests."""
    face = _Face(frontend, registry, slow_client_s, off_loop or OffLoop(), in_flight or InFlight())
    app = Starlette(
        routes=[
            *_routes("/v1/chat/completions", face.chat, "POST"),
            *_routes("/v1/completions", face.completions, "POST"),
            *_routes("/v1/models", face.models),
            Route("/v1/models/{name:path}", face.model),
            *_routes("/health", face.health),
            *_routes("/metrics", face.metrics),
        ],
        middleware=[Middleware(RequestIdMiddleware)],
        exception_handlers={
            BatonError: _baton_error,
            BodyTooLarge: _body_too_large,
            ClientGone: _client_gone,
            HTTPException: _http_exception,
            Exception: _defect,
        },
    )
    app.router.redirect_slashes = False  # it would name http:// also where a proxy speaks https
    return app


def _routes(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str = "GET"
) -> list[Route]:
    """With a slash at its end, too, as some clients put their paths together."""
    return [Route(path + end, endpoint, methods=[method]) for end in ("", "/")]


class _Face:
    def __init__(
        self,
        frontend: Frontend,
        registry: CollectorRegistry,
        slow_client_s: float | None,
        off_loop: OffLoop,
        in_flight: InFlight,
    ) -> None:
        self._frontend = frontend
        self._registry = registry
        self._slow_client_s = slow_client_s
        self._off_loop = off_loop
        self._in_flight = in_flight

    async def chat(self, request: Request) -> Response:
        call = await self._call(request, read_chat)
        return await self._answer(
            request, call, ChatAnswer(call, TokenNames(self._frontend.token_bytes))
        )

    async def completions(self, request: Request) -> Response:
        call = await self._call(request, read_completion)
        return await self._answer(
            request, call, CompletionAnswer(call, TokenNames(self._frontend.token_bytes))
        )

    async def models(self, request: Request) -> Response:
        cards = [_show_card(card) for card in self._frontend.models()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"].removesuffix("/")
        for card in self._frontend.models():
            if card.name == name:
                return JSONResponse(_show_card(card))
        raise UnknownModel(f"there is no model {name!r}", field="model")

    async def health(self, request: Request) -> Response:
        if self._in_flight.is_draining():
            return error_response(Draining("this router is leaving"))
        if self._frontend.is_serving():
            return JSONResponse({"status": "serving"})
        return error_response(Unavailable("no worker can take a request now"))

    async def metrics(self, request: Request) -> Response:
        return Response(
            generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _call(
        self, request: Request, read_call: Callable[[dict[str, Any], Caller], Call]
    ) -> Call:
        """What the body asks for; a long one is read off the event loop."""
        data = await read_body(request, self._slow_client_s)
        caller = read_caller(request)
        most = max_entries(self._frontend.models())

        def read() -> Call:
            return read_call(read_json_object(data, most), caller)

        return await self._off_loop.run(read, len(data), tenant=caller.tenant)

    async def _answer(self, request: Request, call: Call, answer: Answer) -> Response:
        if call.stream:
            return EventStream(self._frontend, call, answer, self._in_flight)
        return await answer_whole(
            self._frontend, call, answer, request.receive, self._in_flight, self._off_loop
        )


def _show_card(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_unix_s,
        "owned_by": "baton",
        "max_model_len": card.max_model_len,
    }


async def _baton_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    return error_response(error)


async def _body_too_large(request: Request, error: Exception) -> Response:
    message = f"the body is larger than {MAX_BODY_BYTES} bytes"
    return error_response(InvalidArgument(message, field="body"), status=413)


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499, headers={"Connection": "close"})  # only logs see it


async def _http_exception(request: Request, error: Exception) -> Response:
    """An unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    reason = HTTPStatus(error.status_code).phrase
    message = f"{reason}: {request.method} {request.scope['path']}"
    kind = NotFound if error.status_code == HTTPStatus.NOT_FOUND else InvalidArgument
    response = error_response(kind(message), status=error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _defect(request: Request, error: Exception) -> Response:
    """Starlette raises the exception again after this answer; uvicorn logs it and hangs up, which
    the client is told so that it sends nothing more on this connection."""
    response = error_response(Internal(f"the router failed: {type(error).__name__}"))
    response.headers["Connection"] = "close"
    return response
