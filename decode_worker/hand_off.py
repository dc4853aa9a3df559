"""A decode worker's side of the hand-off: asks prefill workers, checks what they write, tells the role.

    role --AskPrefill, Abandon--> HandOffs --PrefillStart, Cancel, Confirm--> P      one stream per P
    role <--FirstTokens, HandOffDone, HandOffFailed, Fenced-- HandOffs <--BlocksSent, Fenced...-- P

What has arrived, what is right and what must not be reused is decided by `kv_transfer.transfer.incoming`;
this performs it. All of it runs on the event loop but the reading of blocks, which has a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc

from baton import convert, instants
from baton.config import Times
from baton.errors import BatonError, PeerLost
from baton.rpc.channel import channel
from baton.rpc.status import from_rpc_error
from baton.types import HandOffReport, PoolId, PrefillChoice
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from decode_worker.messages import (
    Abandon,
    AskPrefill,
    Event,
    Fenced,
    FirstToken,
    FirstTokens,
    HandOffDone,
    HandOffFailed,
    Order,
)
from kv_transfer import choose
from kv_transfer.base import Receiver, Revocation, TransferId
from kv_transfer.peer_process import PeerProcess
from kv_transfer.pool import Pool
from kv_transfer.transfer import incoming

log = logging.getLogger(__name__)

_TICK_S = 0.05

Post = Callable[[Event], None]


@dataclass(slots=True, eq=False)
class _Transfer:
    """One hand-off. `receiver` is None until the transport is settled and P has been asked."""

    ask: AskPrefill
    book: incoming.Incoming
    asked_s: float
    receiver: Receiver | None = None
    verified: set[int] = field(default_factory=set)
    first_bytes_s: float | None = None
    prompt_done_s: float | None = None
    done: prefill_pb2.PrefillDone | None = None  # P's account of the prefill
    over: bool = False  # the role knows how it ended

    @property
    def id(self) -> TransferId:
        return TransferId(self.ask.request_id, self.ask.transfer)

    def destination(self, logical: int) -> int:
        return self.ask.destination_blocks[logical - self.ask.first_block]


class HandOffs:
    """`perform` is called on the event loop. `hello` says who asks."""

    def __init__(
        self,
        pool: Pool,
        receivers: choose.Receivers,
        hello: Callable[[], prefill_pb2.PrefillHello],
        post: Post,
        times: Times,
        *,
        block_size: int,
    ) -> None:
        self._pool = pool
        self.receivers = receivers
        self.hello = hello
        self.post = post
        self.times = times
        self._block_size = block_size
        self._links: dict[tuple[PoolId, int], _PrefillLink] = {}
        self._link_of: dict[int, _PrefillLink] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="verify")

    def perform(self, orders: Sequence[Order]) -> None:
        for order in orders:
            match order:
                case AskPrefill():
                    link = self._link(order.prefill)
                    self._link_of[order.transfer] = link
                    link.ask(order)
                case Abandon(transfer):
                    if asked := self._link_of.get(transfer):
                        asked.abandon(transfer)

    async def close(self) -> None:
        for link in list(self._links.values()):
            await link.close()
        self._reader.shutdown(wait=False)
        self.receivers.close()

    def forget(self, transfer: int) -> None:
        self._link_of.pop(transfer, None)

    def forget_link(self, link: _PrefillLink) -> None:
        if self._links.get(link.name) is link:
            del self._links[link.name]

    def read(self, block: int, then: Callable[[int], None]) -> None:
        """Tells `then` the checksum of a block as it lies in this worker's pool now."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            checksum = self._pool.checksum(block)
            loop.call_soon_threadsafe(then, checksum)

        self._reader.submit(read)

    def num_good_tokens(self, transfer: _Transfer) -> int:
        """The tokens from the prompt's start whose KV is here and verified."""
        logical = transfer.ask.first_block
        while logical in transfer.verified:
            logical += 1
        return min(logical * self._block_size, len(transfer.ask.token_ids))

    def num_bytes(self, transfer: _Transfer) -> int:
        return len(transfer.ask.destination_blocks) * self._pool.layout.block_bytes

    def _link(self, prefill: PrefillChoice) -> _PrefillLink:
        name = (prefill.pool, prefill.incarnation)
        if name not in self._links:
            self._links[name] = _PrefillLink(self, name, prefill)
        return self._links[name]


class _PrefillLink:
    """The stream to one prefill worker, and the transfers it carries."""

    def __init__(self, owner: HandOffs, name: tuple[PoolId, int], prefill: PrefillChoice) -> None:
        self.name = name
        self._owner = owner
        self._prefill = prefill
        self._transfers: dict[int, _Transfer] = {}
        self._outgoing: asyncio.Queue[prefill_pb2.PrefillCommand] = asyncio.Queue()
        self._receiver: Receiver | None = None  # of the transport that P chose
        self._waiting: list[AskPrefill] = []  # until the transport is settled
        self._process: PeerProcess | None = None  # None: not of this machine, or dead
        self._is_dead = False
        self._lost = False
        self._task = asyncio.create_task(self._run(), name=f"prefill {prefill.pool}")

    # From the role

    def ask(self, order: AskPrefill) -> None:
        first = order.first_block
        blocks = range(first, first + len(order.destination_blocks))
        book = incoming.Incoming(blocks, self._owner.times)
        self._transfers[order.transfer] = _Transfer(order, book, time.monotonic())
        if self._lost:
            self._fail(self._transfers[order.transfer], PeerLost("the prefill worker is gone"))
        elif self._receiver is None:
            self._waiting.append(order)
        else:
            self._start(order)

    def abandon(self, transfer: int) -> None:
        known = self._transfers.get(transfer)
        if known is not None:
            known.over = True
            self._do(known, known.book.handle(incoming.Abandon(), time.monotonic()))
            self._ask_fence(known)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    # The stream

    async def _run(self) -> None:
        ticker = asyncio.create_task(self._tick())
        link = channel(self._prefill.address)
        try:
            stub = prefill_pb2_grpc.PrefillStub(link)
            self._send(prefill_pb2.PrefillCommand(hello=self._owner.hello()))
            async for event in stub.Prefill(self._commands()):
                self._receive(event)
            error: BatonError = PeerLost("the prefill worker closed the stream")
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error)
        finally:
            ticker.cancel()
            await link.close()
        log.info("prefill worker %s: %s", self._prefill.pool, error)
        self._lost = True
        self._owner.forget_link(self)
        for transfer in list(self._transfers.values()):
            self._fail(transfer, PeerLost(f"prefill worker {self._prefill.pool} was lost: {error}"))
        await self._bury()

    async def _commands(self) -> AsyncIterator[prefill_pb2.PrefillCommand]:
        while True:
            yield await self._outgoing.get()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            for transfer in list(self._transfers.values()):
                self._do(transfer, transfer.book.tick(now_s))

    def _send(self, command: prefill_pb2.PrefillCommand) -> None:
        self._outgoing.put_nowait(command)

    def _receive(self, event: prefill_pb2.PrefillEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "welcome":
            self._welcome(event.welcome)
            return
        message = getattr(event, str(kind))
        transfer = self._transfers.get(message.attempt)
        if transfer is None:
            return
        now_s = time.monotonic()
        match kind:
            case "first_tokens":
                transfer.prompt_done_s = now_s
                self._do(transfer, transfer.book.handle(incoming.PeerHeard(), now_s))
                self._owner.post(_first_tokens(event.first_tokens))
            case "done":
                transfer.done = event.done
                self._complete(transfer)
            case "blocks_sent":
                transfer.first_bytes_s = transfer.first_bytes_s or now_s
                sent = event.blocks_sent
                arrived = incoming.BlocksSent(sent.first_block, tuple(sent.checksums))
                self._do(transfer, transfer.book.handle(arrived, now_s))
            case "fenced":
                self._stopped(transfer)
            case "failed":
                self._fail(transfer, convert.error_from_proto(event.failed.error), fenced=True)
                self._stopped(transfer)

    def _welcome(self, welcome: prefill_pb2.PrefillWelcome) -> None:
        self._receiver = self._owner.receivers[welcome.transport]
        process = choose.unpack_process(welcome.endpoints[0])
        if process is not None:
            try:
                self._process = PeerProcess(process)
            except PeerLost:
                self._is_dead = True
        waiting, self._waiting = self._waiting, []
        for order in waiting:
            if order.transfer in self._transfers:
                self._start(order)

    def _start(self, order: AskPrefill) -> None:
        transfer = self._transfers[order.transfer]
        assert self._receiver is not None
        transfer.receiver = self._receiver
        transfer.receiver.open(transfer.id, order.destination_blocks)
        self._send(prefill_pb2.PrefillCommand(start=_prefill_start(order, time.monotonic())))

    # The book's commands, performed

    def _do(self, transfer: _Transfer, commands: Sequence[incoming.IncomingCommand]) -> None:
        for command in commands:
            match command:
                case incoming.ReadBlock(block):
                    self._owner.read(
                        transfer.destination(block), partial(self._was_read, transfer, block)
                    )
                case incoming.AskResend(blocks):
                    resend = prefill_pb2.PrefillResend(**_named(transfer), logical_blocks=blocks)
                    self._send(prefill_pb2.PrefillCommand(resend=resend))
                case incoming.Keep(block):
                    transfer.verified.add(block)
                case incoming.Complete():
                    self._complete(transfer)
                case incoming.AskFence():
                    self._ask_fence(transfer)
                case incoming.GiveUp(error):
                    self._fail(transfer, error)
                case incoming.KillWriter():
                    log.error("%s owes its fence; only its death frees blocks", self._prefill.pool)
                case incoming.Quarantine() | incoming.Lift():
                    pass  # the role keeps the blocks: it hears HandOffFailed and Fenced

    def _was_read(self, transfer: _Transfer, block: int, checksum: int) -> None:
        if transfer.ask.transfer in self._transfers:
            read = incoming.BlockRead(block, checksum)
            self._do(transfer, transfer.book.handle(read, time.monotonic()))

    def _complete(self, transfer: _Transfer) -> None:
        """Every block is here and right; with P's account of the prefill, the role goes on."""
        if transfer.over or transfer.done is None or not transfer.book.is_complete:
            return
        transfer.over = True
        now_s = time.monotonic()
        if transfer.receiver is not None:
            transfer.receiver.revoke(transfer.id)
        self._send(prefill_pb2.PrefillCommand(confirm=_confirm(transfer)))
        self._forget(transfer)
        self._owner.post(
            HandOffDone(
                transfer.ask.transfer, self._report(transfer, now_s), _instants(transfer, now_s)
            )
        )

    def _report(self, transfer: _Transfer, now_s: float) -> HandOffReport:
        assert transfer.done is not None
        started_s = transfer.first_bytes_s or now_s
        ended_s = transfer.prompt_done_s or now_s
        return HandOffReport(
            prefill_worker=self._prefill.pool.worker_id,
            transfer_bytes=self._owner.num_bytes(transfer),
            transfer_s=now_s - started_s,
            transfer_exposed_s=max(0.0, now_s - ended_s),
            num_prefill_cached_tokens=transfer.done.num_cached_tokens,
        )

    # How a transfer ends badly

    def _fail(self, transfer: _Transfer, error: BatonError, *, fenced: bool = False) -> None:
        """Tells the role, once. Without proof that nobody writes any more the transfer stays known until
        there is some."""
        if transfer.over:
            return
        transfer.over = True
        fenced = fenced or self._is_revoked(transfer)
        num_good = self._owner.num_good_tokens(transfer)
        self._owner.post(HandOffFailed(transfer.ask.transfer, error, num_good, fenced))
        if fenced:
            self._forget(transfer)

    def _ask_fence(self, transfer: _Transfer) -> None:
        if self._is_revoked(transfer):
            self._stopped(transfer)
        elif not self._lost:
            cancel = prefill_pb2.PrefillCancel(**_named(transfer))
            self._send(prefill_pb2.PrefillCommand(cancel=cancel))

    def _is_revoked(self, transfer: _Transfer) -> bool:
        """Whether the transport itself proves that no byte can land any more."""
        if transfer.receiver is None:
            return True  # P was never asked
        return transfer.receiver.revoke(transfer.id) is Revocation.PROVEN

    def _stopped(self, transfer: _Transfer) -> None:
        """It is proved that nobody writes for `transfer`."""
        if transfer.over and transfer.ask.transfer in self._transfers:
            self._forget(transfer)
            self._owner.post(Fenced(transfer.ask.transfer))

    def _forget(self, transfer: _Transfer) -> None:
        del self._transfers[transfer.ask.transfer]
        self._owner.forget(transfer.ask.transfer)

    async def _bury(self) -> None:
        """Waits for the proof that the lost worker writes no more: the transport's word, or its death."""
        while self._transfers:
            dead = self._is_dead or (self._process is not None and self._process.is_dead)
            for transfer in list(self._transfers.values()):
                if dead or self._is_revoked(transfer):
                    self._stopped(transfer)
            await asyncio.sleep(_TICK_S)
        if self._process is not None:
            self._process.close()


def _named(transfer: _Transfer) -> dict[str, Any]:
    return {"request_id": transfer.ask.request_id, "attempt": transfer.ask.transfer}


def _confirm(transfer: _Transfer) -> prefill_pb2.PrefillConfirm:
    return prefill_pb2.PrefillConfirm(**_named(transfer))


def _instants(transfer: _Transfer, now_s: float) -> dict[str, float]:
    """On this worker's clock: P's are taken from when its words arrived."""
    ended_s = transfer.prompt_done_s or now_s
    prefill_s = (
        transfer.done.prefill_ended_s - transfer.done.prefill_started_s if transfer.done else 0
    )
    return {
        instants.PREFILL_START: max(transfer.asked_s, ended_s - prefill_s),
        instants.PREFILL_END: ended_s,
        instants.TRANSFER_START: transfer.first_bytes_s or now_s,
        instants.TRANSFER_END: now_s,
    }


def _first_tokens(message: prefill_pb2.FirstTokens) -> FirstTokens:
    return FirstTokens(
        message.attempt,
        [
            FirstToken(
                token.sample_index,
                token.token_id,
                convert.logprobs_from_proto(token.logprobs) if token.HasField("logprobs") else None,
            )
            for token in message.tokens
        ],
        [convert.logprobs_from_proto(position) for position in message.prompt_logprobs],
    )


def _prefill_start(order: AskPrefill, now_s: float) -> prefill_pb2.PrefillStart:
    return prefill_pb2.PrefillStart(
        request_id=order.request_id,
        attempt=order.transfer,
        token_ids=order.token_ids,
        num_prompt_tokens=order.num_prompt_tokens,
        sample_index=order.first_sample_index,
        sampling=convert.sampling_to_proto(order.params),
        salt=order.salt,
        priority=order.priority,
        timeout_s=max(1e-3, order.deadline_s - now_s) if order.deadline_s is not None else 0.0,
        first_block=order.first_block,
        destination_blocks=order.destination_blocks,
        sample=True,
        pool=convert.pool_to_proto(order.prefill.pool),
        incarnation=order.prefill.incarnation,
        eos_token_ids=order.eos_token_ids,
    )
