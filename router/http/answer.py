"""Answers one call: whole, or as server-sent events (the WHATWG standard's `text/event-stream`).

The status line of a stream waits for the first text, so that a request that fails before it gets
its proper status. An error after that is the stream's last event; `[DONE]` then does not follow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.errors import BatonError, Internal
from router.frontend import Admitted, Deltas, Finished, Frontend, GenerateUpdate, SampleDelta
from router.http import json_answer
from router.http.call import Call
from router.http.choices import (
    FINISH_REASONS,
    Choice,
    Collected,
    collect,
    show_timeline,
    show_usage,
    stop_reason,
    updates_of,
)
from router.http.disconnect import ClientGone, while_connected
from router.http.errors import error_body, error_response
from router.http.in_flight import InFlight
from router.http.logprobs import TokenNames
from router.off_loop import OffLoop

log = logging.getLogger(__name__)

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode
_DONE = b"data: [DONE]\n\n"


class Answer(Protocol):
    """What differs between chat and text completions."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def whole(self) -> str: ...

    @property
    def chunk(self) -> str: ...

    @property
    def token_names(self) -> TokenNames: ...

    def choice(self, choice: Choice) -> dict[str, Any]: ...

    def delta(
        self, index: int, delta: SampleDelta, finish: dict[str, Any]
    ) -> list[dict[str, Any]]: ...

    def beside_choices(self, choices: list[Choice]) -> dict[str, Any]: ...


async def answer_whole(
    frontend: Frontend,
    call: Call,
    answer: Answer,
    receive: Receive,
    in_flight: InFlight,
    off_loop: OffLoop,
) -> Response:
    """A long answer is written off the event loop."""

    async def work() -> Collected:
        async with in_flight.one():
            return await collect(frontend, call)

    collected = await while_connected(receive, work())
    answer.token_names.model = collected.model
    data = await off_loop.run(
        lambda: _body(call, answer, collected),
        collected.num_shown,
        tenant=call.inputs[0].tenant,
    )
    return Response(data, media_type="application/json")


def _body(call: Call, answer: Answer, collected: Collected) -> bytes:
    body: dict[str, Any] = {
        "id": answer.id_prefix + call.request_id,
        "object": answer.whole,
        "created": int(time.time()),
        "model": collected.model,
        "choices": [answer.choice(choice) for choice in collected.choices],
        "usage": show_usage(collected.finished),
        **answer.beside_choices(collected.choices),
    }
    if len(collected.finished) == 1:
        body["timeline"] = show_timeline(collected.finished[0].timeline)
    return json_answer.write(body)


class EventStream(Response):
    """Streams a call's chunks; one write per update, however many samples it holds."""

    media_type = "text/event-stream"

    def __init__(self, frontend: Frontend, call: Call, answer: Answer, in_flight: InFlight) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # of the empty body; this one's length nobody knows
        self._frontend = frontend
        self._call = call
        self._answer = answer
        self._in_flight = in_flight
        self._is_open = False
        self._head = ""
        self._finished: list[Finished] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone):  # the work is cancelled, and nobody is there to tell
            await while_connected(receive, self._run(scope, receive, send))

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with (
                self._in_flight.one(),
                aclosing(updates_of(self._frontend, self._call)) as updates,
            ):
                async for prompt_index, update in updates:
                    if events := self._events(prompt_index, update):
                        await self._send(send, events)
            await self._send(send, self._last_events(), more_body=False)
        except BatonError as error:
            if not self._is_open:
                await error_response(error)(scope, receive, send)
                return
            await self._send(send, _event(error_body(error)), more_body=False)
        except Exception as error:
            if not self._is_open:
                raise
            log.exception("a stream failed, request %s", self._call.request_id)
            defect = Internal(f"the router failed: {type(error).__name__}")
            await self._send(send, _event(error_body(defect)), more_body=False)

    def _events(self, prompt_index: int, update: GenerateUpdate) -> bytes:
        match update:
            case Deltas(deltas):
                return b"".join(
                    self._chunk(choice)
                    for delta in deltas
                    for choice in self._choices(prompt_index, delta)
                )
            case Admitted():
                self._answer.token_names.model = update.model
                self._head = self._chunk_head(update.model)
            case Finished():
                self._finished.append(update)
        return b""

    def _choices(self, prompt_index: int, delta: SampleDelta) -> Iterable[dict[str, Any]]:
        ends = delta.finish_reason is not None
        shows_tokens = delta.token_ids and self._call.return_token_ids
        if not (delta.text or ends or delta.logprobs or shows_tokens):
            return ()  # a character that is not complete, or what may become a stop string
        index = prompt_index * self._call.n + delta.sample_index
        finish: dict[str, Any] = {"finish_reason": None}
        if delta.finish_reason is not None:
            finish["finish_reason"] = FINISH_REASONS[delta.finish_reason]
            finish["stop_reason"] = stop_reason(delta)
        return self._answer.delta(index, delta, finish)

    def _chunk_head(self, model: str) -> str:
        """What all chunks begin with, encoded once."""
        shared = {
            "id": self._answer.id_prefix + self._call.request_id,
            "object": self._answer.chunk,
            "created": int(time.time()),
            "model": model,
        }
        return "data: " + _encode(shared)[:-1] + ',"choices":['

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        tail = '],"usage":null}\n\n' if self._call.include_usage else "]}\n\n"
        return f"{self._head}{_encode(choice)}{tail}".encode()

    def _last_events(self) -> bytes:
        if not self._call.include_usage:
            return _DONE
        beside: dict[str, Any] = {"usage": show_usage(self._finished)}
        if len(self._finished) == 1:
            beside["timeline"] = show_timeline(self._finished[0].timeline)
        return f"{self._head}],{_encode(beside)[1:]}\n\n".encode() + _DONE

    async def _send(self, send: Send, body: bytes, *, more_body: bool = True) -> None:
        if not self._is_open:
            self._is_open = True
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
        await send({"type": "http.response.body", "body": body, "more_body": more_body})


def _event(body: dict[str, Any]) -> bytes:
    return f"data: {_encode(body)}\n\n".encode()
