"""The stream of one request, over as many routers as it takes.

When a router is lost, the request goes on at the next one: same request id, the seed and
the weights that `Admitted` gave, and as `output_token_ids` the tokens that have arrived. Tokens are drawn by
counters, so the next router draws exactly what the lost one would have.

For the text, the contract of every router is: what it sends after forced tokens is exactly the text
that follows the text which these tokens alone had released. (Detokenizer and stop matcher are pure
functions of the tokens; the router pushes the forced ones through both and drops what comes out.)
Each delta carries its tokens together with all the text that they released. So whatever the lost
router was still holding back, half a character or half a stop string, the next router holds too and
releases: texts are simply joined, and no character is lost or doubled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self

from baton import convert
from baton.client.replicas import Replicas
from baton.client.results import Delta, delta_from_proto
from baton.client.session import Call
from baton.errors import BatonError, DeadlineExceeded, Internal, Unavailable
from baton.types import PositionLogprobs, Timeline, Usage
from baton.v1 import inference_pb2

# How long a stream that has begun looks for a router to go on at. One that has not begun asks each
# replica once: there is nothing to lose yet, and a wrong address should be told at once.
_RECONNECT_S = 10.0
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 1.0


@dataclass(slots=True)
class _Search:
    """The search for a router, from the first failure until something arrives again."""

    since_s: float
    num_failures: int = 0
    backoff_s: float = _MIN_BACKOFF_S


class AsyncStream:
    """Iterates over `Delta`s; `async with` or `aclose` ends it early, which cancels the request.

    `model`, `seed` and `num_prompt_tokens` are known with the first delta, `usage` and `timeline`
    after the last. `num_continuations`: how often another router had to go on.
    """

    def __init__(
        self,
        replicas: Replicas,
        request: inference_pb2.GenerateRequest,
        *,
        timeout_s: float | None = None,
        traceparent: str = "",
    ) -> None:
        self.request_id = request.request_id
        self.model = request.model
        self.seed = request.sampling.seed
        self.num_prompt_tokens = 0
        self.prompt_logprobs: tuple[PositionLogprobs, ...] = ()
        self.usage: Usage | None = None
        self.timeline: Timeline | None = None
        self.num_continuations = 0
        self._replicas = replicas
        self._request = request
        self._traceparent = traceparent
        self._timeout_s = timeout_s
        self._deadline_s: float | None = (
            None  # on the event loop's clock, from the first attempt on
        )
        self._output = [list(sample.ids) for sample in request.output_token_ids]
        self._finished: set[int] = set()
        self._weights = request.weights  # their identity; no others go on with what they began
        self._begun = False
        self._closed = False
        self._search: _Search | None = None
        self._address = ""
        self._call: Call | None = None
        self._ready: deque[Delta] = deque()

    async def receive(self) -> list[Delta]:
        """The deltas that have arrived together; empty at the end. Raises the request's typed
        error."""
        while not self._ready and not self._closed:
            await self._advance()
        ready = list(self._ready)
        self._ready.clear()
        return ready

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    def cancel(self) -> None:
        """Ends the stream, and the request with it, wherever it is."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def aclose(self) -> None:
        self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def _advance(self) -> None:
        """One message, or one step of the search for a router."""
        call = self._call or self._open()
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await call.read()
        except TimeoutError:  # the router would have said so, if it lived
            self.cancel()
            raise DeadlineExceeded("the deadline passed") from None
        except BatonError as error:
            await self._lost(error)
            return
        if message is not None:
            self._take(message)
        elif self.usage is None and not self._closed:
            raise Internal("the stream ended without its last message")
        else:
            self._closed = True

    def _open(self) -> Call:
        self._address = self._replicas.current()
        self._call = self._replicas.session(self._address).start(
            self._request, timeout_s=self._remaining_s(), traceparent=self._traceparent
        )
        return self._call

    def _remaining_s(self) -> float | None:
        if self._timeout_s is None:
            return None
        now_s = asyncio.get_running_loop().time()
        if self._deadline_s is None:
            self._deadline_s = now_s + self._timeout_s
        return max(0.0, self._deadline_s - now_s)

    def _take(self, message: inference_pb2.GenerateResponse) -> None:
        self._search = None
        self._begun = True
        if message.HasField("admitted"):
            self.model, self.seed = message.admitted.model, message.admitted.seed
            self.num_prompt_tokens = message.admitted.num_prompt_tokens
            self._weights = message.admitted.weights
        if message.prompt_logprobs:
            positions = map(convert.logprobs_from_proto, message.prompt_logprobs)
            self.prompt_logprobs += tuple(positions)
        for each in message.deltas:
            self._take_delta(delta_from_proto(each))
        if message.HasField("usage"):
            self.usage = convert.usage_from_proto(message.usage)
            self.timeline = convert.timeline_from_proto(message.timeline)

    def _take_delta(self, delta: Delta) -> None:
        if delta.sample_index in self._finished:
            return  # the end of a sample that the lost router had ended already, told again
        while len(self._output) <= delta.sample_index:
            self._output.append([])
        self._output[delta.sample_index] += delta.token_ids
        if delta.finish_reason is not None:
            self._finished.add(delta.sample_index)
        self._ready.append(delta)

    async def _lost(self, error: BatonError) -> None:
        """Prepares to go on at the next router, or raises what cannot be mended."""
        self._call = None
        if not isinstance(error, Unavailable):
            raise error
        now_s = asyncio.get_running_loop().time()
        search = self._search = self._search or _Search(since_s=now_s)
        search.num_failures += 1
        self._replicas.failed(self._address)
        asked_all = search.num_failures % len(self._replicas.addresses) == 0
        if asked_all and (not self._begun or now_s - search.since_s > _RECONNECT_S):
            raise error
        if asked_all:
            await asyncio.sleep(search.backoff_s)
            search.backoff_s = min(_MAX_BACKOFF_S, 2 * search.backoff_s)
        if self._remaining_s() == 0:
            raise DeadlineExceeded(f"no router to go on at: {error}") from error
        if self._begun and search.num_failures == 1:
            self._continue()

    def _continue(self) -> None:
        """Turns the request into its own continuation."""
        self.num_continuations += 1
        self._request.model = self.model
        self._request.sampling.seed = self.seed
        del self._request.output_token_ids[:]
        if not any(self._output):
            self._request.weights = ""
            self.prompt_logprobs = ()  # whatever part had arrived comes again, from the start
        else:
            self._request.sampling.ClearField("prompt_logprobs")  # they precede the first token
            num_samples = max(len(self._output), self._request.sampling.n)
            self._output += [[] for _ in range(num_samples - len(self._output))]
            self._request.output_token_ids.extend(convert.token_ids_to_proto(self._output))
            self._request.weights = self._weights
