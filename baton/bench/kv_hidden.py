"""How much of a transfer prefill hides: a prefill worker's role, engine and pusher, over a throttled link.

    alone        the prompt is computed, nothing leaves
    overlapped   as in a worker: every layer's blocks leave while the next layer computes
    serial       the same blocks leave when the prompt is computed: what there is to gain

The link is throttled so that the transfer takes a given part of the prefill alone. Of that time hidden is
what does not pass after the prefill's end.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from baton.bench.rounds import Steps
from baton.bench.statistics import estimate, pairwise_ratio
from baton.engine.config import EngineConfig
from baton.engine.warm_up import warm_up
from baton.errors import Internal
from baton.scheduling.block_manager import BlockManager
from baton.types import SamplingParams
from baton.worker.engine import LoadedEngine
from kv_transfer.base import Link, TransferId, Write, Written
from kv_transfer.layout import plan
from kv_transfer.link import Finish, Flow, OrderedLink
from kv_transfer.pool import Pool, copy_blocks
from kv_transfer.shm import SharedMemory
from prefill_worker.config import PrefillConfig
from prefill_worker.messages import Ask, Cancel, Confirm, Event, FenceDone
from prefill_worker.push import Arrived, Pusher
from prefill_worker.pushing_runner import PushingRunner
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.state_machine import PrefillRequests

SHAPE = "llama-125m"
NUM_TOKENS = 1024
_READER = 1
_GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds. `exposed_s`: from the prefill's end until the last block lay at the reader."""

    prefill_s: float
    exposed_s: float = 0.0


def row(
    ratio: float, num_rounds: int, steps: Steps, num_tokens: int = NUM_TOKENS
) -> dict[str, Any]:
    """`ratio`: the transfer's time over that of the prefill alone."""
    side = _Prefill(num_tokens)
    alone, overlapped, serial, transfer_s = [], [], [], []
    side.alone()
    for _ in range(num_rounds):
        alone.append(side.alone())
        rate = side.num_bytes / (ratio * alone[-1].prefill_s)
        transfer_s.append(side.num_bytes / rate)
        overlapped.append(side.pushing(rate, serial=False))
        serial.append(side.pushing(rate, serial=True))
        steps.end(f"transfer / prefill {ratio}")
    hidden = [
        estimate([1 - took.exposed_s / whole for took, whole in zip(each, transfer_s, strict=True)])
        for each in (overlapped, serial)
    ]
    slowed = pairwise_ratio([t.prefill_s for t in overlapped], [t.prefill_s for t in alone])
    return {
        "transfer_over_prefill": ratio,
        "hidden_fraction": hidden[0].median,
        "ci95": hidden[0].ci95,
        "serial_hidden_fraction": hidden[1].median,
        "n": hidden[0].n,
        "prefill_slowed_by": slowed.median,
        "prefill_slowed_by_ci95": slowed.ci95,
        "prompt_tokens": num_tokens,
        "transfer_bytes": side.num_bytes,
    }


class _ThrottledWire:
    """Copies, and lets as much time pass as a link of `bytes_per_s` would take."""

    def __init__(self, source: Pool, destination: Pool, bytes_per_s: float) -> None:
        self.flow = Flow(destination.layout.piece_bytes)
        self._source = source
        self._destination = destination
        self._slices = plan(source.layout, destination.layout)
        self._bytes_per_s = bytes_per_s

    def begin(self, transfer: TransferId, write: Write) -> Finish:
        begin_s = time.perf_counter()
        sums = copy_blocks(self._source, self._destination, self._slices, write, checksums=True)
        size_bytes = len(write.source_blocks) * write.num_layers * self.flow.piece_bytes
        time.sleep(max(0.0, begin_s + size_bytes / self._bytes_per_s - time.perf_counter()))
        return lambda: sums

    def close(self) -> None:
        """Nothing is held."""


class _SerialLink:
    """Keeps writes back until `release`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._kept: list[tuple[TransferId, Write, Future[Written]]] = []
        self.open, self.fence, self.close = link.open, link.fence, link.close

    def write(self, transfer: TransferId, write: Write) -> Future[Written]:
        done: Future[Written] = Future()
        self._kept.append((transfer, write, done))
        return done

    def release(self) -> None:
        for transfer, write, done in self._kept:
            self._link.write(transfer, write).add_done_callback(partial(_pass_on, done))


def _pass_on(done: Future[Written], sent: Future[Written]) -> None:
    done.set_result(sent.result())


class _Prefill:
    """A prefill worker without its network, and the pool of a reader."""

    def __init__(self, num_tokens: int) -> None:
        engine = LoadedEngine.load(
            EngineConfig(SHAPE, load_format="dummy", kv_cache_bytes=256 << 20, num_threads=1)
        )
        self._runner, self._pool = engine.runner, engine.pool()
        layout = self._pool.layout
        self._reader_pool = Pool(layout, SharedMemory(layout.size_bytes).memory)
        self._num_tokens = num_tokens
        self._num_blocks = -(-num_tokens // layout.block_size)
        self.num_bytes = self._num_blocks * layout.block_bytes
        self._numbers = count(1)
        self._dice = random.Random(0)
        blocks = BlockManager(self._runner.num_blocks, layout.block_size)
        scheduler = PrefillScheduler(blocks, PrefillConfig().limits())
        warm_up(self._runner, scheduler.step_time)
        vocab_size, longest = self._runner.model_config.vocab_size, self._runner.max_model_len
        self._role = PrefillRequests(scheduler, _GIVE_UP_S, vocab_size, longest)

    def alone(self) -> Took:
        ask = self._ask()
        took = self._compute(ask, None)
        self._role.handle(Cancel(ask.key), time.monotonic())
        self._role.take_commands()
        self._role.handle(FenceDone(ask.key), time.monotonic())
        return took

    def pushing(self, bytes_per_s: float, *, serial: bool) -> Took:
        wire = _ThrottledWire(self._pool, self._reader_pool, bytes_per_s)
        link = OrderedLink(wire, "throttled")
        kept = _SerialLink(link)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        last = threading.Event()
        num_left = self._num_blocks

        def arrived(key: object, blocks: Arrived) -> None:
            nonlocal num_left
            num_left -= len(blocks.checksums)
            if num_left == 0:
                last.set()

        def broken(reader: int, error: Exception) -> None:
            raise error

        def unfenced(error: BaseException) -> None:
            raise error

        num_layers = self._pool.layout.num_layers
        pusher = Pusher(num_layers, events.put, arrived, broken, unfenced)
        pusher.add_reader(_READER, kept if serial else link)
        ask = self._ask()
        took = self._compute(ask, pusher)
        ended_s = time.perf_counter()
        if serial:
            kept.release()
        if not last.wait(_GIVE_UP_S):
            raise Internal("blocks did not arrive over the throttled link")
        exposed_s = time.perf_counter() - ended_s
        self._role.handle(Confirm(ask.key), time.monotonic())
        pusher.perform(self._role.take_commands().orders)
        while not isinstance(event := events.get(timeout=_GIVE_UP_S), FenceDone):
            self._role.handle(event, time.monotonic())
        self._role.handle(event, time.monotonic())
        pusher.close()
        return Took(took.prefill_s, exposed_s)

    def _compute(self, ask: Ask, pusher: Pusher | None) -> Took:
        """A worker's step loop until the prompt is computed."""
        role = self._role
        runner = PushingRunner(self._runner, role, pusher) if pusher else self._runner
        begin_s = time.perf_counter()
        role.handle(ask, time.monotonic())
        while (step := role.schedule(time.monotonic())) is not None:
            self._obey(pusher)
            role.update(step, runner.run(step), time.monotonic())
            self._obey(pusher)
        return Took(time.perf_counter() - begin_s)

    def _obey(self, pusher: Pusher | None) -> None:
        orders = self._role.take_commands().orders
        if pusher is not None:
            pusher.perform(orders)

    def _ask(self) -> Ask:
        vocab_size = self._runner.model_config.vocab_size
        return Ask(
            key=(_READER, next(self._numbers)),
            request_id="bench",
            token_ids=[self._dice.randrange(vocab_size) for _ in range(self._num_tokens)],
            num_prompt_tokens=self._num_tokens,
            first_sample_index=0,
            params=SamplingParams(max_tokens=1, temperature=0.0),
            eos_token_ids=(),
            salt=b"",
            first_block=0,
            destination_blocks=range(self._num_blocks),
        )
