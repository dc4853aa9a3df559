"""baton.v1.Prefill on the wire: streams of decode workers in, the role's events; its words, streams out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import grpc

from baton import convert
from baton.errors import BatonError, IncompatiblePeer, InvalidArgument
from baton.types import WorkerInfo
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from baton.worker.door import not_understood
from kv_transfer.base import Link
from kv_transfer.introduction import pack_process
from prefill_worker.borrower import Borrower
from prefill_worker.messages import (
    Ask,
    Cancel,
    Confirm,
    Event,
    Failed,
    Fenced,
    Key,
    PromptDone,
    ReaderId,
    ReaderLost,
    Resend,
    Turn,
    Unreadable,
    Word,
)
from prefill_worker.push import Arrived, Pusher
from prefill_worker.streams import Outgoing, Stream, Streams

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class PrefillService(prefill_pb2_grpc.PrefillServicer):
    """One stream per decode worker, with a link of its own to that worker's pool. `post`, `pusher`,
    `borrower` and `info` are set before the server starts."""

    post: Callable[[Event], None]
    pusher: Pusher
    borrower: Borrower
    info: Callable[[], WorkerInfo]

    def __init__(self, connect: Callable[[bytes], tuple[str, Link]]) -> None:
        self._connect_to = connect
        self._reader_ids = count(1)
        self._streams = Streams()
        self._fences: set[asyncio.Task[None]] = set()
        self._names: dict[Key, str] = {}  # request ids, for the words that name them
        self._loop = asyncio.get_running_loop()

    async def Prefill(
        self, request_iterator: AsyncIterator[prefill_pb2.PrefillCommand], context: Context
    ) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        stream = Stream(next(self._reader_ids), self._end)
        self._streams.add(stream)
        reading = stream.reading = asyncio.create_task(self._read(stream, request_iterator))
        try:
            async for event in stream.outgoing:
                yield event
            await reading  # raises what ended it
        finally:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        """Nothing more is done for this reader. Also while an event to it cannot be written, where it has
        left too much unread."""
        if stream.is_over:
            return
        stream.is_over = True
        if stream.reading is not None:
            stream.reading.cancel()
        reader = stream.reader
        self.post(ReaderLost(reader))
        self.borrower.remove_reader(reader)
        closing = asyncio.wrap_future(self.pusher.remove_reader(reader))
        fence = asyncio.create_task(self._streams.fence(stream, closing))
        self._fences.add(fence)
        fence.add_done_callback(self._fences.discard)
        self._names = {key: name for key, name in self._names.items() if key[0] != reader}

    def send(self, words: Mapping[ReaderId, Sequence[Word]]) -> None:
        """Sends what a step produced. On the event loop."""
        for reader, each in words.items():
            if stream := self._streams.get(reader):
                for word in each:
                    for event in self._events((reader, word.number), word):
                        stream.outgoing.put(event)

    def outgoing(self) -> Iterator[Outgoing]:
        """What is to be written, to each reader. On the event loop."""
        return self._streams.outgoing()

    def tell(self, reader: ReaderId, event: prefill_pb2.PrefillEvent) -> None:
        """Sends `event`, if the reader is still there. On the event loop."""
        if stream := self._streams.get(reader):
            stream.outgoing.put(event)

    def announce(self, key: Key, arrived: Arrived) -> None:
        """Blocks lie in the reader's pool. Any thread."""
        self._loop.call_soon_threadsafe(self._announce, key, arrived)

    def _announce(self, key: Key, arrived: Arrived) -> None:
        if stream := self._streams.get(key[0]):
            sent = prefill_pb2.BlocksSent(
                **self._named(key),
                first_block=arrived.first_block,
                checksums=arrived.checksums,
                busy_s=arrived.busy_s,
            )
            stream.outgoing.put(prefill_pb2.PrefillEvent(blocks_sent=sent))

    async def keep_alive(self, interval_s: float, is_hung: Callable[[], bool]) -> None:
        """Tells readers who wait for something that this worker is at work on it, until cancelled."""
        alive = prefill_pb2.PrefillEvent(alive=prefill_pb2.PrefillAlive())
        while True:
            await asyncio.sleep(interval_s)
            if is_hung():
                continue
            for reader in {reader for reader, _ in self._names}:
                if stream := self._streams.get(reader):
                    stream.outgoing.put(alive)

    def hang_up(self, reader: ReaderId, error: BatonError) -> None:
        """The link to a reader failed, which is its end: over a new stream there will be another one.
        Any thread."""
        self._loop.call_soon_threadsafe(self._hang_up, reader, error)

    def _hang_up(self, reader: ReaderId, error: BatonError) -> None:
        if stream := self._streams.get(reader):
            stream.hang_up(error)

    async def _read(
        self, stream: Stream, commands: AsyncIterator[prefill_pb2.PrefillCommand]
    ) -> None:
        reader = stream.reader
        try:
            async for command in commands:
                kind = command.WhichOneof("command")
                if kind == "hello":
                    stream.outgoing.put(await self._welcome(stream, command.hello))
                    stream.welcome = True
                    continue
                try:
                    self._hear(reader, kind, command)
                except Exception as error:  # costs the hand-off that it names
                    log.warning("%s of a decode worker was not understood: %r", kind, error)
                    named = getattr(getattr(command, str(kind), None), "attempt", 0)
                    if named:
                        self.post(Unreadable((reader, named), not_understood(error, kind)))
        finally:
            stream.outgoing.end()

    def _hear(
        self, reader: ReaderId, kind: str | None, command: prefill_pb2.PrefillCommand
    ) -> None:
        match kind:
            case "start":
                self._names[reader, command.start.attempt] = command.start.request_id
                self.post(_ask(reader, command.start))
            case "cancel":
                self.post(Cancel((reader, command.cancel.attempt)))
            case "confirm":
                self.post(Confirm((reader, command.confirm.attempt)))
            case "resend":
                resend = command.resend
                self.post(Resend((reader, resend.attempt), list(resend.logical_blocks)))
            case "lent":
                self.borrower.lent((reader, command.lent.attempt), command.lent.checksums)
            case "not_lent":
                self.borrower.not_lent((reader, command.not_lent.attempt))
            case _:
                raise InvalidArgument("is not known here", field="command")

    async def _welcome(
        self, stream: Stream, hello: prefill_pb2.PrefillHello
    ) -> prefill_pb2.PrefillEvent:
        """Refuses a peer of another model; opens the best link that both sides offer."""
        info = self.info()
        if hello.fingerprint.identity != info.fingerprint.identity:
            raise IncompatiblePeer("serves other weights", field="fingerprint.identity")
        await self._streams.replace(stream, hello)
        transport, link = await self._connect(hello.endpoints[0])
        self.pusher.add_reader(stream.reader, link)
        self.borrower.add_reader(stream.reader, hello)
        welcome = prefill_pb2.PrefillWelcome(
            info=convert.worker_info_to_proto(info),
            transport=transport,
            endpoints=[pack_process()],
            receivers=[self.borrower.offer()],
        )
        return prefill_pb2.PrefillEvent(welcome=welcome)

    async def _connect(self, offer: bytes) -> tuple[str, Link]:
        connecting = self._loop.run_in_executor(None, self._connect_to, offer)
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_close_link)  # nobody will use it
            raise

    def _events(self, key: Key, word: Word) -> list[prefill_pb2.PrefillEvent]:
        named = self._named(key)
        match word:
            case PromptDone():
                first = prefill_pb2.FirstTokens(
                    **named,
                    tokens=[
                        prefill_pb2.FirstToken(
                            sample_index=index,
                            token_id=drawn.token_id,
                            logprobs=convert.logprobs_to_proto(drawn.logprobs)
                            if drawn.logprobs
                            else None,
                        )
                        for index, drawn in word.drawn
                    ],
                    prompt_logprobs=[convert.logprobs_to_proto(p) for p in word.prompt_logprobs],
                )
                done = prefill_pb2.PrefillDone(
                    **named,
                    num_cached_tokens=word.num_cached_tokens,
                    num_lent_tokens=word.num_lent_tokens,
                    prefill_started_s=word.started_s,
                    prefill_ended_s=word.ended_s,
                )
                return [
                    prefill_pb2.PrefillEvent(done=done),
                    prefill_pb2.PrefillEvent(first_tokens=first),
                ]
            case Turn(_, computing):
                turn = prefill_pb2.PrefillTurn(**named, computing=computing)
                return [prefill_pb2.PrefillEvent(turn=turn)]
            case Fenced():
                fenced = prefill_pb2.PrefillEvent(fenced=prefill_pb2.Fenced(**named))
                self._names.pop(key, None)
                return [fenced]
            case Failed(_, error):
                self._names.pop(key, None)
                failed = prefill_pb2.PrefillFailed(**named, error=convert.error_to_proto(error))
                return [prefill_pb2.PrefillEvent(failed=failed)]

    def _named(self, key: Key) -> dict[str, Any]:
        return {"request_id": self._names.get(key, ""), "attempt": key[1]}


def _close_link(connecting: asyncio.Future[tuple[str, Link]]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result()[1].close()


def _ask(reader: ReaderId, message: prefill_pb2.PrefillStart) -> Ask:
    return Ask(
        key=(reader, message.attempt),
        request_id=message.request_id,
        token_ids=list(message.token_ids),
        num_prompt_tokens=message.num_prompt_tokens,
        first_sample_index=message.sample_index,
        params=convert.sampling_from_proto(message.sampling),
        eos_token_ids=list(message.eos_token_ids),
        salt=message.salt,
        first_block=message.first_block,
        destination_blocks=list(message.destination_blocks),
        sample=message.sample,
        priority=message.priority,
        deadline_s=time.monotonic() + message.timeout_s if message.timeout_s else None,
        lends=message.lends,
        suspected=message.suspected,
    )
