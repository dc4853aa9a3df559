"""The stream to one prefill worker, and the hand-offs that it carries.

    connecting --Welcome--> up --stream ends--> lost --Welcome again--> up
         |                                       |
         +-- nothing is asked any more -- over --+   once nobody can write for it any more

Hand-offs of a lost stream have failed, but a writer that was only stopped, or cut off, may still write:
their blocks stay quarantined until it is proved otherwise. The proof is the transport's word, the death
of the process, or the Welcome of a later stream, which a prefill worker gives only after it has fenced
all earlier ones. So a lost stream is opened again for as long as a proof is missing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import grpc

from baton import convert, instants
from baton.errors import BatonError, IncompatiblePeer, Internal, PeerLost
from baton.rpc.channel import channel
from baton.rpc.outgoing import Outgoing
from baton.rpc.status import from_rpc_error
from baton.types import PrefillChoice
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from decode_worker import prefill_words
from decode_worker.decode_side import DecodeSide
from decode_worker.lender import Lender
from decode_worker.loans import Loans
from decode_worker.messages import AskPrefill, Fenced, HandOffDone, HandOffFailed
from decode_worker.prefill_process import PrefillProcess
from decode_worker.transfer import Transfer
from kv_transfer.base import Receiver
from kv_transfer.transfer import incoming

log = logging.getLogger(__name__)

_TICK_S = 0.05
_AGAIN_S = 0.2

Commands = Outgoing[prefill_pb2.PrefillCommand]


class PrefillLink:
    """Made on the event loop. `on_forget` hears of every hand-off that needs no link any more, `on_end`
    of the link's own end; whoever asks then makes a new one."""

    def __init__(
        self,
        side: DecodeSide,
        prefill: PrefillChoice,
        on_forget: Callable[[int], None],
        on_end: Callable[[PrefillChoice], None],
    ) -> None:
        self._side = side
        self._prefill = prefill
        self._on_forget = on_forget
        self._on_end = on_end
        self._transfers: dict[int, Transfer] = {}
        self._outgoing = Commands()
        self._transport = ""  # that P chose
        self._receiver: Receiver | None = None  # of it; None until Welcome
        self._starts: set[asyncio.Task[None]] = set()  # waiting for the way to lend by
        self._loans = Loans(
            lambda offer: Lender(side.senders, offer, side.verifier.layout.num_layers),
            side.post,
            lambda command: self._outgoing.put(command),
            side.fail,
        )
        self._lost = False
        self._process = PrefillProcess()
        self._task = asyncio.create_task(self._run(), name=f"prefill {prefill.pool}")

    # From the role

    def ask(self, order: AskPrefill) -> None:
        first = order.first_block
        blocks = range(first, first + len(order.destination_blocks))
        book = incoming.Incoming(blocks, self._side.times)
        transfer = Transfer(order, book, time.monotonic())
        self._transfers[order.transfer] = transfer
        self._loans.open(order)
        if self._lost:
            self._fail(transfer, PeerLost("the prefill worker is lost"))
        elif self._receiver is not None:
            self._start(transfer, self._receiver)

    def abandon(self, number: int) -> None:
        transfer = self._transfers.get(number)
        if transfer is None:
            return
        self._over(transfer)
        self._do(transfer, transfer.book.handle(incoming.Abandon(), time.monotonic()))

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._loans.close()

    # The stream

    async def _run(self) -> None:
        ticker = asyncio.create_task(self._tick())
        try:
            while True:
                error = await self._serve()
                log.info("prefill worker %s: %s", self._prefill.pool, error)
                self._receiver, self._lost = None, True
                if not isinstance(error, IncompatiblePeer):  # which no other try would change
                    error = PeerLost(f"prefill worker {self._prefill.pool} was lost: {error}")
                for transfer in list(self._transfers.values()):
                    self._fail(transfer, error, computing=transfer.may_be_computing)
                await self._loans.close()
                if not self._transfers:
                    return
                await asyncio.sleep(_AGAIN_S)
        finally:
            ticker.cancel()
            for start in self._starts:
                start.cancel()
            self._on_end(self._prefill)
            self._process.close()

    async def _serve(self) -> BatonError:
        """One stream, from its first word to its end; returns why it ended."""
        self._outgoing = outgoing = Commands()
        hello = self._side.hello(next(self._side.stream_numbers))
        outgoing.put(prefill_pb2.PrefillCommand(hello=hello))
        link = channel(self._prefill.address)
        try:
            async with asyncio.timeout(self._side.times.answer_timeout_s) as limit:
                async for event in prefill_pb2_grpc.PrefillStub(link).Prefill(outgoing):
                    match event.WhichOneof("event"):
                        case "welcome":
                            limit.reschedule(None)
                            self._welcome(event.welcome)
                        case "alive":
                            self._alive(time.monotonic())
                        case kind:
                            self._hear(kind, event)
            return PeerLost("it closed the stream")
        except TimeoutError:
            return PeerLost("it does not answer")
        except BatonError as error:
            return error
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
        except Exception as error:
            log.exception("the stream of %s broke", self._prefill.pool)
            return Internal(f"the stream broke: {error!r}")
        finally:
            outgoing.end()
            await link.close()

    async def _tick(self) -> None:
        """What follows from time alone, and from the death of the process."""
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            for transfer in list(self._transfers.values()):
                self._do(transfer, transfer.book.tick(now_s))
                transfer.writer_stopped |= self._process.is_dead
                self._lift(transfer)

    def _hear(self, kind: str | None, event: prefill_pb2.PrefillEvent) -> None:
        """A word about one hand-off; one that cannot be understood ends that hand-off."""
        number = getattr(getattr(event, str(kind), None), "attempt", None)
        if number is None:
            log.warning("%s says what is not known here: %s", self._prefill.pool, kind)
            return
        transfer = self._transfers.get(number)
        try:
            if kind == "wanted":
                self._loans.wanted(event.wanted)
            elif transfer is not None:
                self._receive(kind, event, transfer)
        except Exception as error:
            log.exception("%s of %s was not understood", kind, self._prefill.pool)
            if transfer is not None:
                self._fail(transfer, Internal(f"{kind} was not understood: {error!r}"))

    def _receive(
        self, kind: str | None, event: prefill_pb2.PrefillEvent, transfer: Transfer
    ) -> None:
        now_s = time.monotonic()
        match kind:
            case "done":
                transfer.done, transfer.prompt_done_s = event.done, now_s
                self._do(transfer, transfer.book.handle(incoming.PeerHeard(), now_s))
            case "first_tokens":
                if transfer.done is None:
                    raise Internal("the first tokens came without an account of the prefill")
                account = transfer.account(now_s)
                self._side.post(prefill_words.first_tokens(event.first_tokens, account))
                self._do(transfer, transfer.book.handle(incoming.PromptComputed(), now_s))
            case "blocks_sent":
                sent = event.blocks_sent
                transfer.sent(sent, now_s)
                arrived = incoming.BlocksSent(sent.first_block, tuple(sent.checksums))
                self._do(transfer, transfer.book.handle(arrived, now_s))
            case "turn":
                transfer.computing = event.turn.computing
            case "fenced":
                self._stopped(transfer)
            case "failed":
                self._fail(transfer, convert.error_from_proto(event.failed.error), fenced=True)
                self._stopped(transfer)

    def _alive(self, now_s: float) -> None:
        """P is at work on every prompt that is not computed yet. What has been computed must arrive."""
        for transfer in self._transfers.values():
            if transfer.done is None:
                self._do(transfer, transfer.book.handle(incoming.PeerHeard(), now_s))

    def _welcome(self, welcome: prefill_pb2.PrefillWelcome) -> None:
        if welcome.info.incarnation != self._prefill.incarnation:
            raise PeerLost("another process answers in its place")
        self._process.name(welcome.endpoints[0])
        self._transport = welcome.transport
        self._receiver, self._lost = self._side.receivers[welcome.transport], False
        self._loans.welcome(welcome.receivers[0] if welcome.receivers else b"")
        for transfer in list(self._transfers.values()):
            if transfer.over:
                self._stopped(transfer)  # asked for on an earlier stream
            else:
                self._start(transfer, self._receiver)

    def _start(self, transfer: Transfer, receiver: Receiver) -> None:
        transfer.receiver, transfer.transport = receiver, self._transport
        receiver.open(transfer.id, transfer.ask.destination_blocks)
        self._do(transfer, transfer.book.handle(incoming.Asked(), time.monotonic()))
        if not transfer.ask.lent_blocks:
            self._outgoing.put(prefill_words.start(transfer.ask, "", time.monotonic()))
            return
        start = asyncio.create_task(self._start_lending(transfer, self._outgoing))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)

    async def _start_lending(self, transfer: Transfer, outgoing: Commands) -> None:
        """Where nothing can be lent, P computes the prefix again."""
        lends = await self._loans.transport()
        if not transfer.over:
            outgoing.put(prefill_words.start(transfer.ask, lends, time.monotonic()))

    # The book's commands, performed

    def _do(self, transfer: Transfer, commands: Sequence[incoming.IncomingCommand]) -> None:
        for command in commands:
            match command:
                case incoming.ReadBlock(block):
                    self._read(transfer, block)
                case incoming.AskResend(blocks):
                    log.warning(
                        "blocks %s of %s arrived wrong from %s, they are sent again",
                        blocks,
                        transfer.ask.request_id,
                        self._prefill.pool,
                    )
                    transfer.num_resent_blocks += len(blocks)
                    self._outgoing.put(prefill_words.resend(transfer, blocks))
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

    def _read(self, transfer: Transfer, block: int) -> None:
        loop = asyncio.get_running_loop()

        def was_read(checksum: Future[int]) -> None:
            loop.call_soon_threadsafe(self._was_read, transfer, block, checksum)

        destination, told = transfer.destination(block), transfer.told[block]
        self._side.verifier.checksum(destination, told).add_done_callback(was_read)

    def _was_read(self, transfer: Transfer, block: int, checksum: Future[int]) -> None:
        if transfer.ask.transfer not in self._transfers:
            return
        read: incoming.BlockRead | incoming.ReadFailed
        if (error := checksum.exception()) is not None:
            log.error("block %s of %s cannot be read", block, transfer.id, exc_info=error)
            read = incoming.ReadFailed(block, Internal(f"block {block} cannot be read: {error!r}"))
        else:
            read = incoming.BlockRead(block, checksum.result())
        self._do(transfer, transfer.book.handle(read, time.monotonic()))

    def _complete(self, transfer: Transfer) -> None:
        """Every block is right, and P has given its account of the prefill: the role goes on."""
        if transfer.over:
            return
        self._over(transfer)
        now_s = time.monotonic()
        if transfer.receiver is not None:
            transfer.receiver.revoke(transfer.id)
        self._outgoing.put(prefill_words.confirm(transfer))
        self._forget(transfer)
        report = transfer.report(self._side.verifier.layout, now_s)
        arrived = {
            instants.TRANSFER_START: transfer.first_bytes_s or now_s,
            instants.TRANSFER_END: now_s,
        }
        self._side.post(HandOffDone(transfer.ask.transfer, report, arrived))

    # How a transfer ends badly

    def _fail(
        self,
        transfer: Transfer,
        error: BatonError,
        *,
        fenced: bool = False,
        computing: bool = False,
    ) -> None:
        """Tells the role, once. Without proof that nobody writes any more the transfer stays known until
        there is some."""
        if transfer.over:
            return
        self._over(transfer)
        transfer.writer_stopped |= fenced
        fenced = self._is_settled(transfer)
        num_good = transfer.num_good_tokens(self._side.verifier.layout.block_size)
        self._side.post(HandOffFailed(transfer.ask.transfer, error, num_good, fenced, computing))
        if fenced:
            self._forget(transfer)

    def _over(self, transfer: Transfer) -> None:
        """The role knows, or is about to hear, how it ended."""
        transfer.over = True
        self._loans.end(transfer.ask.transfer)

    def _ask_fence(self, transfer: Transfer) -> None:
        self._lift(transfer)
        if not self._lost and transfer.receiver is not None:
            self._outgoing.put(prefill_words.cancel(transfer))

    @staticmethod
    def _is_settled(transfer: Transfer) -> bool:
        """Whether it is proved that no byte can land any more."""
        if transfer.receiver is None:
            return True  # P was never asked
        revocation = transfer.receiver.revoke(transfer.id)
        return revocation.is_settled(writer_stopped=transfer.writer_stopped)

    def _stopped(self, transfer: Transfer) -> None:
        """Its writer writes no more. What is still on its way is waited for, tick by tick."""
        transfer.writer_stopped = True
        self._lift(transfer)

    def _lift(self, transfer: Transfer) -> None:
        """Tells the role, once, when its blocks are its own again."""
        known = transfer.ask.transfer in self._transfers
        if transfer.over and known and self._is_settled(transfer):
            self._forget(transfer)
            self._side.post(Fenced(transfer.ask.transfer))

    def _forget(self, transfer: Transfer) -> None:
        del self._transfers[transfer.ask.transfer]
        self._on_forget(transfer.ask.transfer)
