"""The decode worker of one transport, in this process: the role, its step loop, its hand-offs. Only the model
is another one, and requests come from `start` rather than from a router's stream.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from baton import convert
from baton.config import Times
from baton.errors import BatonError
from baton.scheduling.block_manager import BlockManager
from baton.types import PrefillChoice, SamplingParams
from baton.v1 import prefill_pb2
from baton.worker.step_loop import StepLoop
from baton.worker.verifier import Verifier
from decode_worker.decode_side import DecodeSide
from decode_worker.hand_off import HandOffs
from decode_worker.messages import (
    AskPrefill,
    Cancel,
    Commands,
    Event,
    Finished,
    HandOffDone,
    Outbox,
    Reroute,
    Start,
)
from decode_worker.scheduler import Scheduler, SchedulerLimits
from decode_worker.state_machine import DecodeRequests
from kv_transfer.choose import Receivers, Senders
from kv_transfer.introduction import pack_process
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory
from tests.faults.accounts import Accounts, accounts
from tests.faults.dealing import BLOCK_SIZE, NUM_BLOCKS, VOCAB_SIZE, Deal, Directive, Fault
from tests.faults.hash_model import LAYOUT, CheckedModel
from tests.faults.prefill import FINGERPRINT

MAX_TOKENS = 3
_ROUTER = 1


@dataclass(slots=True)
class Life:
    """A request as its router knows it. `lost`: why each of its hand-offs failed."""

    deal: Deal
    finished: asyncio.Future[Finished]
    token_ids: list[int] = field(default_factory=list)
    lost: list[BatonError] = field(default_factory=list)


Reroutes = Callable[[Life], PrefillChoice | None]


class DecodeRole(DecodeRequests):
    """Counts the requests for which there is no memory when they come."""

    num_without_memory = 0

    def handle(self, event: Event, now_s: float) -> None:
        if isinstance(event, Start):
            num_needed = -(-len(event.prompt_token_ids) // BLOCK_SIZE)
            self.num_without_memory += num_needed > self.scheduler.blocks.num_available
        super().handle(event, now_s)


class Decode:
    """Made on the event loop. `reroute` names another prefill worker where one was lost, or none."""

    def __init__(self, transport: str, times: Times, reroute: Reroutes) -> None:
        self.transport = transport
        self.struck: Counter[Fault] = Counter()
        self.num_handed_over = 0
        self.num_asked = 0
        self.num_lent_tokens = 0
        self._reroute = reroute
        self._lives: dict[int, Life] = {}
        self._loop = asyncio.get_running_loop()
        self._to_flip = Flips()
        shared = SharedMemory(LAYOUT.size_bytes)
        self._pool = pool = Pool(LAYOUT, shared.memory)
        timeout_s, transports = times.progress_timeout_s, (transport,)
        self._receivers = Receivers(pool, shared, "127.0.0.1", timeout_s, transports)
        verifier = Verifier(pool, verify=True, arrived=self._arrived)
        senders = Senders(pool, timeout_s, transports)
        side = DecodeSide(
            self._receivers, senders, verifier, self._hello, self._post, self._failed, times
        )
        self._hand_offs = HandOffs(side)
        limits = SchedulerLimits(max_model_len=NUM_BLOCKS * BLOCK_SIZE)
        self._role = DecodeRole(Scheduler(BlockManager(NUM_BLOCKS, BLOCK_SIZE), limits), VOCAB_SIZE)
        self._model = CheckedModel(pool)
        self._failure: BaseException | None = None
        self._steps: StepLoop[Event, Commands] = StepLoop(
            self._role, self._model, self._deliver, self._failed
        )
        self._steps.start()

    @property
    def num_wrong_bytes(self) -> int:
        return self._model.num_wrong

    async def start(self, life: Life, prefill: PrefillChoice | None) -> None:
        deal = life.deal
        self._lives[deal.number] = life
        expires = deal.fault is Fault.DEADLINE
        self._steps.post(
            Start(
                key=(_ROUTER, deal.number),
                request_id=deal.request_id,
                attempt=0,
                prompt_token_ids=deal.token_ids,
                output_token_ids=(),
                params=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, ignore_eos=True),
                eos_token_ids=(),
                salt=b"",
                deadline_s=time.monotonic() + deal.after_s * 0.04 if expires else None,
                prefill=prefill,
            )
        )

    def cancel(self, number: int) -> None:
        self._steps.post(Cancel((_ROUTER, number)))

    def forget(self, number: int) -> None:
        del self._lives[number]

    async def accounts(self) -> Accounts:
        asked = self._steps.ask(
            lambda: accounts(
                self._role.scheduler.blocks, self._role.num_requests, self._role.scheduler
            )
        )
        return await asyncio.wrap_future(asked)

    async def close(self) -> None:
        await self._hand_offs.close()
        await asyncio.to_thread(self._steps.stop)
        self.struck[Fault.POOL_EXHAUSTED] += self._role.num_without_memory
        if self._failure is not None:
            raise self._failure

    def _hello(self, stream: int) -> prefill_pb2.PrefillHello:
        return prefill_pb2.PrefillHello(
            worker_id=f"decode-{self.transport}",
            incarnation=1,
            fingerprint=convert.fingerprint_to_proto(FINGERPRINT),
            endpoints=[self._receivers.offer()],
            stream=stream,
            process=pack_process(),
        )

    def _post(self, event: Event) -> None:
        if isinstance(event, HandOffDone):
            self.num_handed_over += 1
            self.num_lent_tokens += event.report.num_lent_tokens
        self._steps.post(event)

    # The engine's thread

    def _deliver(self, commands: Commands) -> None:
        for order in commands.orders:
            if isinstance(order, AskPrefill):
                self.num_asked += 1
                self._to_flip.ask(order)
        if commands.outboxes:
            self._loop.call_soon_threadsafe(self._hear, commands.outboxes[_ROUTER])
        if commands.orders:
            self._loop.call_soon_threadsafe(self._hand_offs.perform, commands.orders)

    def _failed(self, error: BaseException) -> None:
        self._failure = error

    # As a router hears it

    def _hear(self, outbox: Outbox) -> None:
        for number, token in zip(outbox.keys, outbox.token_ids, strict=True):
            self._lives[number].token_ids.append(token)
        for number, error, _ in outbox.prefill_lost:
            life = self._lives[number]
            life.lost.append(error)
            self._steps.post(Reroute((_ROUTER, number), self._reroute(life)))
        for finished in outbox.finished:
            if not (future := self._lives[finished.number].finished).done():
                future.set_result(finished)

    # The verifier's thread

    def _arrived(self, block: int) -> None:
        if self._to_flip.take(block):
            self._pool.piece(block % LAYOUT.num_layers, block)[block] ^= 0xFF
            self.struck[Fault.FLIP_AFTER_WRITE] += 1


class Flips:
    """The blocks of which a byte is to change between their arrival and their check, once each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: set[int] = set()

    def ask(self, order: AskPrefill) -> None:
        directive = Directive.of(order.request_id)
        blocks = order.destination_blocks
        with self._lock:
            self._blocks.difference_update(blocks)  # of another life
            if directive.fault is Fault.FLIP_AFTER_WRITE:
                self._blocks.add(blocks[directive.at % len(blocks)])

    def take(self, block: int) -> bool:
        with self._lock:
            if block not in self._blocks:
                return False
            self._blocks.remove(block)
            return True
