"""A decode worker's link to a prefill worker that says what the test says, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from baton import convert
from baton.config import Times
from baton.errors import BatonError, IncompatiblePeer, Internal, InvalidArgument, PeerLost
from baton.rpc.server import Server
from baton.types import PoolId, PrefillChoice, Role, SamplingParams
from baton.v1 import prefill_pb2, prefill_pb2_grpc
from baton.worker.verifier import Verifier
from decode_worker.decode_side import DecodeSide
from decode_worker.hand_off import HandOffs
from decode_worker.messages import AskPrefill, Event, FirstTokens, HandOffDone, HandOffFailed
from kv_transfer import wire_format
from kv_transfer.choose import Receivers, Senders
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory
from tests.cluster.watching import eventually
from tests.transfer.worlds import SMALL, TIMEOUT_S
from tests.unit.lives import make_worker

TIMES = Times(answer_timeout_s=0.3, progress_timeout_s=0.3, fence_timeout_s=0.3)
ELSEWHERE = wire_format.pack({"host_id": "another machine", "pid": 1, "start_ticks": 1})
BLOCKS = (3, 7)
NAMED: dict[str, Any] = {"request_id": "r", "attempt": 1}


class Prefill(prefill_pb2_grpc.PrefillServicer):
    """Welcomes, unless `refusal` says otherwise or `silent`; then says what is put into `words`."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[prefill_pb2.PrefillCommand] = asyncio.Queue()
        self.words: asyncio.Queue[prefill_pb2.PrefillEvent] = asyncio.Queue()
        self.refusal: BatonError | None = None
        self.receivers: list[bytes] = []
        self.silent = False

    async def Prefill(
        self, request_iterator: AsyncIterator[prefill_pb2.PrefillCommand], context: Any
    ) -> AsyncIterator[prefill_pb2.PrefillEvent]:
        self.heard.put_nowait(await anext(request_iterator))
        if self.refusal is not None:
            raise self.refusal
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            if not self.silent:
                info = convert.worker_info_to_proto(make_worker("p", Role.PREFILL))
                welcome = prefill_pb2.PrefillWelcome(
                    info=info,
                    transport="shm",
                    endpoints=[ELSEWHERE],
                    receivers=self.receivers,
                )
                yield prefill_pb2.PrefillEvent(welcome=welcome)
            while True:
                yield await self.words.get()
        finally:
            reading.cancel()

    async def _read(self, commands: AsyncIterator[prefill_pb2.PrefillCommand]) -> None:
        async for command in commands:
            self.heard.put_nowait(command)

    async def hears(self, kind: str) -> None:
        """The next word is of that kind."""
        assert (await self.heard.get()).WhichOneof("command") == kind

    def say(self, **event: Any) -> None:
        self.words.put_nowait(prefill_pb2.PrefillEvent(**event))


class World:
    def __init__(self, prefill: Prefill, address: str, arrived: Callable[[int], None]) -> None:
        self.prefill = prefill
        self.choice = PrefillChoice(PoolId("p"), 1, address)
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        shared = SharedMemory(SMALL.size_bytes)
        self.pool = Pool(SMALL, shared.memory)
        side = DecodeSide(
            Receivers(self.pool, shared, "127.0.0.1", TIMEOUT_S, ("shm",)),
            Senders(self.pool, TIMEOUT_S, ("shm",)),
            Verifier(self.pool, verify=True, arrived=arrived),
            lambda stream: prefill_pb2.PrefillHello(worker_id="d", incarnation=1, stream=stream),
            self.events.put_nowait,
            self._fail,
            TIMES,
        )
        self.hand_offs = HandOffs(side)

    def ask(self) -> None:
        tokens = list(range(len(BLOCKS) * SMALL.block_size))
        self.hand_offs.perform(
            [
                AskPrefill(
                    transfer=1,
                    prefill=self.choice,
                    request_id="r",
                    attempt=1,
                    token_ids=tokens,
                    num_prompt_tokens=len(tokens),
                    first_sample_index=0,
                    params=SamplingParams(max_tokens=1),
                    eos_token_ids=(),
                    salt=b"",
                    priority=0,
                    deadline_s=None,
                    first_block=0,
                    destination_blocks=BLOCKS,
                )
            ]
        )

    def send_blocks(self) -> None:
        sums = [self.pool.checksum(block) for block in BLOCKS]
        self.prefill.say(blocks_sent=prefill_pb2.BlocksSent(**NAMED, checksums=sums))

    async def failure(self) -> HandOffFailed:
        event = await self.events.get()
        assert isinstance(event, HandOffFailed)
        return event

    def _fail(self, error: BaseException) -> None:
        raise error


@asynccontextmanager
async def linked(arrived: Callable[[int], None] = lambda block: None) -> AsyncIterator[World]:
    prefill = Prefill()
    async with asyncio.timeout(30), Server() as server:
        server.add_background(prefill_pb2_grpc.add_PrefillServicer_to_server, prefill)
        world = World(prefill, server.address, arrived)
        try:
            yield world
        finally:
            await world.hand_offs.close()


async def test_a_link_is_there_before_it_is_needed() -> None:
    async with linked() as world:
        world.hand_offs.meet(world.choice)
        await world.prefill.hears("hello")
        world.hand_offs.meet(world.choice)
        world.ask()
        await world.prefill.hears("start")  # on the same stream: there is no second hello
        world.send_blocks()
        world.prefill.say(done=prefill_pb2.PrefillDone(**NAMED))
        world.prefill.say(first_tokens=prefill_pb2.FirstTokens(**NAMED))
        assert {type(await world.events.get()) for _ in range(2)} == {FirstTokens, HandOffDone}
        await world.prefill.hears("confirm")


async def test_so_is_the_way_back_by_which_prefixes_are_lent() -> None:
    async with linked() as world:
        shared = SharedMemory(SMALL.size_bytes)
        theirs = Receivers(Pool(SMALL, shared.memory), shared, "127.0.0.1", TIMEOUT_S, ("shm",))
        world.prefill.receivers = [theirs.offer()]
        world.hand_offs.meet(world.choice)
        await world.prefill.hears("hello")
        (link,) = world.hand_offs._links.values()
        connected = await eventually(
            lambda: asyncio.sleep(0, link._loans._connected), lambda seen: seen is not None
        )
        assert connected is not None
        assert await connected == "shm"
        theirs.close()


async def test_a_link_that_cannot_be_opened_is_tried_again_when_it_is_needed() -> None:
    async with linked() as world:
        world.prefill.refusal = IncompatiblePeer("serves other weights")
        world.hand_offs.meet(world.choice)
        await world.prefill.hears("hello")
        links = world.hand_offs._links
        await eventually(lambda: asyncio.sleep(0, len(links)), lambda num_links: num_links == 0)
        assert world.events.empty(), "nobody asked"
        world.prefill.refusal = None
        world.ask()
        await world.prefill.hears("hello")
        await world.prefill.hears("start")


async def test_who_does_not_welcome_is_given_up() -> None:
    async with linked() as world:
        world.prefill.silent = True
        world.ask()
        failed = await world.failure()
        assert isinstance(failed.error, PeerLost)
        assert failed.fenced, "it was asked for nothing"


async def test_who_says_nothing_after_it_was_asked_is_given_up() -> None:
    async with linked() as world:
        world.ask()
        failed = await world.failure()
        assert isinstance(failed.error, PeerLost)
        assert not failed.fenced, "it may write"
        for kind in ("hello", "start", "cancel"):
            await world.prefill.hears(kind)


async def test_a_prompt_that_does_not_end_is_given_up_though_all_its_blocks_are_here() -> None:
    async with linked() as world:
        world.ask()
        world.send_blocks()
        failed = await world.failure()
        assert isinstance(failed.error, PeerLost)
        assert failed.num_verified == len(BLOCKS) * SMALL.block_size


async def test_other_weights_are_told_as_such() -> None:
    async with linked() as world:
        world.prefill.refusal = IncompatiblePeer("serves other weights")
        world.ask()
        failed = await world.failure()
        assert isinstance(failed.error, IncompatiblePeer)
        assert failed.fenced


@pytest.mark.parametrize("error", [InvalidArgument("no token"), Internal("odd")])
async def test_what_the_prefill_worker_says_of_a_request_is_told(error: BatonError) -> None:
    async with linked() as world:
        world.ask()
        failed = prefill_pb2.PrefillFailed(**NAMED, error=convert.error_to_proto(error))
        world.prefill.say(failed=failed)
        told = (await world.failure()).error
        assert (type(told), told.message) == (type(error), error.message)


async def test_a_block_that_cannot_be_read_is_not_waited_for() -> None:
    def cannot(block: int) -> None:
        if block == BLOCKS[1]:
            raise OSError("no such device")

    async with linked(cannot) as world:
        world.ask()
        world.send_blocks()
        world.prefill.say(done=prefill_pb2.PrefillDone(**NAMED))
        world.prefill.say(first_tokens=prefill_pb2.FirstTokens(**NAMED))
        while not isinstance(failed := await world.events.get(), HandOffFailed):
            assert isinstance(failed, FirstTokens)
        assert isinstance(failed.error, Internal)
        assert failed.num_verified == SMALL.block_size
