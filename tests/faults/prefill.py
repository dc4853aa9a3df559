"""A prefill worker in a process of its own: the role, its step loop, its service, links that suffer faults.
Only the model is another one, and nobody registers.

Over its pipe it says its address, and each fault before it strikes; it is asked for its accounts, and to end.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from baton.config import Times
from baton.rpc.server import Server
from baton.scheduling.block_manager import BlockManager
from baton.types import Fingerprint, Role, WorkerInfo
from baton.v1 import prefill_pb2_grpc
from baton.worker.step_loop import StepLoop
from baton.worker.verifier import Verifier
from kv_transfer.choose import Receivers, Senders
from kv_transfer.host import host_id
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory
from prefill_worker.borrower import Borrower
from prefill_worker.messages import Commands, Event, Failed, FenceDone
from prefill_worker.push import Pusher
from prefill_worker.pushing_runner import PushingRunner
from prefill_worker.scheduler import PrefillLimits, PrefillScheduler
from prefill_worker.service import PrefillService
from prefill_worker.state_machine import PrefillRequests
from tests.faults.accounts import Accounts, accounts
from tests.faults.dealing import BLOCK_SIZE, NUM_BLOCKS, VOCAB_SIZE, Fault
from tests.faults.hash_model import LAYOUT, HashModel
from tests.faults.late_words import LateWords
from tests.faults.mischief import Mischief, MischievousSenders

FINGERPRINT = Fingerprint(
    "hash", BLOCK_SIZE, 1, LAYOUT.dtype, LAYOUT.num_layers, LAYOUT.num_kv_heads, LAYOUT.head_dim
)
LIMITS = PrefillLimits(min_chunk_tokens=4 * BLOCK_SIZE, max_chunk_tokens=4 * BLOCK_SIZE)
_LAYER_S = 0.0003
_ALIVES_PER_TIMEOUT = 4


@dataclass(frozen=True, slots=True)
class Struck:
    fault: Fault
    request_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Which worker this is, and how it is reached."""

    transport: str
    worker_id: str
    incarnation: int
    times: Times


def main(place: Place, pipe: Connection) -> None:
    torch.set_num_threads(1)
    asyncio.run(_serve(place, pipe))


async def _serve(place: Place, pipe: Connection) -> None:
    worker = _Worker(place, pipe)
    asyncio.get_running_loop().add_reader(pipe.fileno(), worker.obey)
    await worker.run()


class _Worker:
    """Wired as `prefill_worker.process` does it."""

    def __init__(self, place: Place, pipe: Connection) -> None:
        self._place = place
        self._pipe = pipe
        self._sending = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._server = Server()
        shared = SharedMemory(LAYOUT.size_bytes)
        pool = Pool(LAYOUT, shared.memory)
        timeout_s, transports = place.times.progress_timeout_s, (place.transport,)
        mischief = Mischief(place.worker_id, lambda *struck: self._say(Struck(*struck)))
        senders = MischievousSenders(
            lambda pool: Senders(pool, timeout_s, transports), pool, mischief
        )
        self._service = PrefillService(senders.connect)
        self._late = LateWords(mischief, self._loop, self._service, self._post)
        blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE)
        self._role = PrefillRequests(
            PrefillScheduler(blocks, LIMITS),
            place.times.block_hold_s,
            VOCAB_SIZE,
            NUM_BLOCKS * BLOCK_SIZE,
        )
        self._pusher = Pusher(
            LAYOUT.num_layers,
            self._post,
            self._late.announce,
            self._service.hang_up,
            lambda _: self._end(),
        )
        receivers = Receivers(pool, shared, "127.0.0.1", timeout_s, transports)
        self._borrower = Borrower(
            receivers, Verifier(pool, verify=True), self._post_ended, self._service.tell
        )
        runner = PushingRunner(HashModel(pool, _LAYER_S), self._role, self._pusher)
        self._steps: StepLoop[Event, Commands] = StepLoop(
            self._role, runner, self._deliver, lambda _: self._end()
        )
        self._service.post, self._service.info = self._post, self._info
        self._service.pusher, self._service.borrower = self._pusher, self._borrower

    async def run(self) -> None:
        self._server.add_background(prefill_pb2_grpc.add_PrefillServicer_to_server, self._service)
        await self._server.start()
        self._steps.start()
        interval_s = self._place.times.progress_timeout_s / _ALIVES_PER_TIMEOUT
        background = [
            asyncio.create_task(self._service.keep_alive(interval_s, lambda: False)),
            asyncio.create_task(self._borrower.run()),
        ]
        self._say(self._server.address)
        await self._ended.wait()
        for task in background:
            task.cancel()
        await self._server.stop()
        await asyncio.to_thread(self._steps.stop)
        self._pusher.close()
        self._borrower.close()

    def obey(self) -> None:
        """Somebody asks for the accounts, or has closed the pipe: then it ends."""
        try:
            self._pipe.recv()
        except EOFError:
            self._loop.remove_reader(self._pipe.fileno())
            self._ended.set()
            return
        self._steps.ask(self._accounts).add_done_callback(lambda asked: self._say(asked.result()))

    def _deliver(self, commands: Commands) -> None:
        if commands.orders:
            self._loop.call_soon_threadsafe(self._borrower.perform, commands.orders)
        self._late.perform(commands.orders)
        self._pusher.perform(commands.orders)
        if commands.words:
            self._loop.call_soon_threadsafe(self._service.send, commands.words)
        for words in commands.words.values():
            for word in words:
                if isinstance(word, Failed) and "confirmed" in str(word.error):
                    self._say(Struck(Fault.HOLD_EXPIRED, ""))

    def _post(self, event: Event) -> None:
        if isinstance(event, FenceDone):
            self._loop.call_soon_threadsafe(self._borrower.end, event.key)
        elif not self._late.is_lost(event):
            self._steps.post(event)

    def _post_ended(self, event: Event) -> None:
        self._steps.post(event)
        if isinstance(event, FenceDone):
            self._late.ended(event.key)

    def _accounts(self) -> Accounts:
        return accounts(self._role.scheduler.blocks, self._role.num_requests, self._role.scheduler)

    def _info(self) -> WorkerInfo:
        return WorkerInfo(
            worker_id=self._place.worker_id,
            incarnation=self._place.incarnation,
            role=Role.PREFILL,
            address=self._server.address,
            model="hash",
            fingerprint=FINGERPRINT,
            max_model_len=NUM_BLOCKS * BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
            num_dp_ranks=1,
            num_total_blocks=NUM_BLOCKS,
            package_version="0",
            transports=(self._place.transport,),
            host_id=host_id(),
            pid=os.getpid(),
        )

    def _say(self, word: object) -> None:
        with self._sending:
            self._pipe.send(word)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
