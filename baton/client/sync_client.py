"""The SDK without asyncio: the asynchronous client on a private event loop, in a thread of its own.

It knows no protocol: every method hands over to `AsyncClient` and waits. May be used from any
thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar, Unpack

from baton.client.async_client import AsyncClient
from baton.client.request import GenerateOptions, Prompt
from baton.client.results import Delta, Generation, Load, Model, RequestStatus, Route
from baton.client.stream import AsyncStream
from baton.state.base import Member
from baton.types import PositionLogprobs, Timeline, Usage

Result = TypeVar("Result")


class _LoopThread:
    """An event loop that runs in a daemon thread until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="baton-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Waits for the result; an interrupt of the waiting (Ctrl-C) cancels the work.

        Waits on a queue, since an interrupt never leaves that half taken, as it does a condition's lock
        (which `Future.result` waits on): so what comes out is KeyboardInterrupt and no RuntimeError.
        """
        ended: queue.SimpleQueue[asyncio.Task[Result]] = queue.SimpleQueue()
        tasks: list[asyncio.Task[Result]] = []

        async def call() -> Result:
            return await work()

        def start() -> None:
            task = self.loop.create_task(call())
            tasks.append(task)
            task.add_done_callback(ended.put)

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self.loop.call_soon_threadsafe(start)
        try:
            return ended.get().result()
        except BaseException:
            self.loop.call_soon_threadsafe(cancel)
            raise

    def close(self) -> None:
        if not self.loop.is_closed():
            self.run(_end_other_tasks)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()


async def _end_other_tasks() -> None:
    """Work whose waiting was interrupted is cancelled, but may not have come to its end yet."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Stream:
    """Iterates over `Delta`s; `with` or `close` ends it early, which cancels the request. So does
    dropping it. For its properties see `AsyncStream`."""

    def __init__(self, thread: _LoopThread, stream: AsyncStream) -> None:
        self._thread = thread
        self._stream = stream
        self._ready: deque[Delta] = deque()

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    @property
    def model(self) -> str:
        return self._stream.model

    @property
    def seed(self) -> int:
        return self._stream.seed

    @property
    def num_prompt_tokens(self) -> int:
        return self._stream.num_prompt_tokens

    @property
    def prompt_logprobs(self) -> tuple[PositionLogprobs, ...]:
        return self._stream.prompt_logprobs

    @property
    def usage(self) -> Usage | None:
        return self._stream.usage

    @property
    def timeline(self) -> Timeline | None:
        return self._stream.timeline

    @property
    def num_continuations(self) -> int:
        return self._stream.num_continuations

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Delta:
        if not self._ready:
            self._ready.extend(self._thread.run(self._stream.receive))
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    def close(self) -> None:
        if not self._thread.loop.is_closed():
            self._thread.loop.call_soon_threadsafe(self._stream.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Client:
    """`AsyncClient` for code without asyncio: the same methods, the same errors, waiting."""

    def __init__(
        self, addresses: str | Sequence[str] = "127.0.0.1:50051", *, timeout_s: float | None = None
    ) -> None:
        self._client = AsyncClient(addresses, timeout_s=timeout_s)
        self._thread = _LoopThread()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Stream:
        return Stream(self._thread, self._client.stream(prompt, **options))

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Generation:
        return self._thread.run(lambda: self._client.generate(prompt, **options))

    def tokenize(
        self, prompt: Prompt, *, model: str = "", add_special_tokens: bool | None = None
    ) -> list[int]:
        return self._thread.run(
            lambda: self._client.tokenize(
                prompt, model=model, add_special_tokens=add_special_tokens
            )
        )

    def detokenize(
        self, token_ids: Sequence[int], *, model: str = "", skip_special_tokens: bool | None = None
    ) -> str:
        return self._thread.run(
            lambda: self._client.detokenize(
                token_ids, model=model, skip_special_tokens=skip_special_tokens
            )
        )

    def models(self) -> list[Model]:
        return self._thread.run(self._client.models)

    def workers(self) -> list[Member]:
        return self._thread.run(self._client.workers)

    def load(self) -> Load:
        return self._thread.run(self._client.load)

    def drain(self, worker_id: str, *, grace_s: float = 0.0) -> None:
        self._thread.run(lambda: self._client.drain(worker_id, grace_s=grace_s))

    def requests(self, limit: int = 0) -> list[RequestStatus]:
        return self._thread.run(lambda: self._client.requests(limit))

    def route(self, prompt: str | Sequence[int], *, model: str = "", tenant: str = "") -> Route:
        return self._thread.run(lambda: self._client.route(prompt, model=model, tenant=tenant))

    def close(self) -> None:
        if not self._thread.loop.is_closed():
            self._thread.run(self._client.close)
            self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
