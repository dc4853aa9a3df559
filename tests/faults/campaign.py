"""Transfers with faults by the thousand: one decode worker and some prefill workers of every transport, and
requests as routers send them. In the end every request has been answered, every block is back, and no byte
that was decoded from was wrong.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from baton.config import Times
from baton.errors import Cancelled, ConfigError, DeadlineExceeded
from baton.types import PrefillChoice
from kv_transfer.choose import TRANSPORTS, Senders
from kv_transfer.pool import Pool
from tests.faults.dealing import NUM_PREFILL_WORKERS, Deal, Fault, deal, worker_id
from tests.faults.decode import MAX_TOKENS, Decode, Life
from tests.faults.hash_model import LAYOUT, expected_output
from tests.faults.prefill import Place, Struck
from tests.faults.writers import Writer

# Shorter than a cluster's: what is waited for here happens thousands of times.
TIMES = Times(answer_timeout_s=3.0, block_hold_s=1.5, progress_timeout_s=0.5, fence_timeout_s=1.0)
_AT_A_TIME = 20  # requests of each transport
_HUNG_S = 30.0
_MOST_ATTEMPTS = 3
_CANCEL_WITHIN_S = 0.03
_SETTLE_TRIES = 400  # twenty to the second


@dataclass(slots=True)
class Result:
    """`hung`: requests without an answer in time. `leaked_blocks`: held or quarantined by nobody.
    `wrong_bytes`: of KV that was decoded from. `failed`: requests that ended otherwise than they should.
    `rerouted_after_s`: from each kill of a writer until its request was asked of another."""

    transfers: int
    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    transports: dict[str, int] = field(default_factory=dict)
    faults_of: dict[str, dict[str, int]] = field(default_factory=dict)  # by transport
    attempts: int = 0
    handed_over: int = 0
    lent_tokens: int = 0
    hung: int = 0
    leaked_blocks: int = 0
    wrong_bytes: int = 0
    failed: list[str] = field(default_factory=list)
    rerouted_after_s: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.hung or self.leaked_blocks or self.wrong_bytes or self.failed)


def possible_transports() -> list[str]:
    """Those that move pools in host memory, here."""
    return [name for name in TRANSPORTS if _is_possible(name)]


def _is_possible(transport: str) -> bool:
    pool = Pool(LAYOUT, torch.zeros(LAYOUT.size_bytes, dtype=torch.uint8))
    try:
        Senders(pool, TIMES.progress_timeout_s, (transport,))
    except ConfigError:
        return False
    return True


Progress = Callable[[int, int], None]


async def run(
    num_transfers: int, seed: int, transports: Sequence[str], progress: Progress
) -> Result:
    begin_s = time.monotonic()
    result = Result(num_transfers, seed)
    deals = list(deal(num_transfers, seed, transports))
    stages = [_Stage(transport, seed, result) for transport in transports]
    await asyncio.gather(*(stage.start() for stage in stages))
    try:
        done = 0

        def finished() -> None:
            nonlocal done
            done += 1
            progress(done, num_transfers)

        async with asyncio.TaskGroup() as group:
            for stage in stages:
                own = [each for each in deals if each.transport == stage.transport]
                group.create_task(stage.play(own, finished))
        for stage in stages:
            await stage.settle()
    finally:
        for stage in stages:
            await stage.close()
    result.elapsed_s = round(time.monotonic() - begin_s, 1)
    return result


class _Stage:
    """One transport."""

    def __init__(self, transport: str, seed: int, result: Result) -> None:
        self.transport = transport
        self._result = result
        self._dice = random.Random(f"{seed} {transport}")
        self._struck: Counter[Fault] = Counter()
        self._killed_s: dict[str, float] = {}  # when, by request id
        self._decode = Decode(transport, TIMES, self._reroute)
        self._writers = [
            Writer(
                Place(transport, worker_id(transport, number), 0, TIMES),
                self._strikes,
                lambda: self._dice.uniform(0.2, 1.5),
            )
            for number in range(NUM_PREFILL_WORKERS)
        ]

    async def start(self) -> None:
        await asyncio.gather(*(writer.start() for writer in self._writers))

    async def play(self, deals: Iterable[Deal], finished: Callable[[], None]) -> None:
        seats = asyncio.Semaphore(_AT_A_TIME)

        async def one(deal: Deal) -> None:
            try:
                await self._play(deal)
                finished()
            finally:
                seats.release()

        async with asyncio.TaskGroup() as group:
            for each in deals:
                await seats.acquire()
                group.create_task(one(each))

    async def settle(self) -> None:
        """Waits until nobody holds a block any more; what is held then is leaked."""
        for books in (self._decode.accounts, *(writer.accounts for writer in self._writers)):
            found = await books()
            for _ in range(_SETTLE_TRIES):
                if found.settled:
                    break
                await asyncio.sleep(0.05)
                found = await books()
            self._result.leaked_blocks += found.num_taken
            if found.error:
                self._result.failed.append(found.error)

    async def close(self) -> None:
        for writer in self._writers:
            await writer.close()
        await self._decode.close()
        self._struck.update(self._decode.struck)
        result = self._result
        counts = {each.name.lower(): self._struck[each] for each in Fault if each is not Fault.NONE}
        result.faults_of[self.transport] = counts
        for name, count in counts.items():
            result.faults[name] = result.faults.get(name, 0) + count
        result.attempts += self._decode.num_asked
        result.handed_over += self._decode.num_handed_over
        result.lent_tokens += self._decode.num_lent_tokens
        result.wrong_bytes += self._decode.num_wrong_bytes

    async def _play(self, deal: Deal) -> None:
        loop = asyncio.get_running_loop()
        life = Life(deal, loop.create_future())
        await self._decode.start(life, self._choice(deal, deal.worker))
        if deal.fault is Fault.CANCELLED:
            loop.call_later(deal.after_s * _CANCEL_WITHIN_S, self._decode.cancel, deal.number)
        counts = self._result.transports
        counts[self.transport] = counts.get(self.transport, 0) + 1
        try:
            async with asyncio.timeout(_HUNG_S):
                finished = await life.finished
        except TimeoutError:
            self._result.hung += 1
            self._result.failed.append(f"{deal.request_id} hangs")
            return
        self._judge(life, finished.error)

    def _judge(self, life: Life, error: BaseException | None) -> None:
        deal = life.deal
        wanted = expected_output(deal.token_ids, MAX_TOKENS)
        if life.token_ids != wanted[: len(life.token_ids)] or (
            error is None and life.token_ids != wanted
        ):
            self._result.failed.append(f"{deal.request_id} says {life.token_ids}, not {wanted}")
        match deal.fault, error:
            case _, None:
                pass
            case (Fault.CANCELLED, Cancelled()) | (Fault.DEADLINE, DeadlineExceeded()):
                self._struck[deal.fault] += 1
            case _:
                self._result.failed.append(f"{deal.request_id} ends with {error!r}")

    def _strikes(self, struck: Struck) -> None:
        self._struck[struck.fault] += 1
        if struck.fault is Fault.WRITER_KILLED:
            self._killed_s[struck.request_id] = time.monotonic()

    def _reroute(self, life: Life) -> PrefillChoice | None:
        """Another worker, and after some attempts none."""
        if killed_s := self._killed_s.pop(life.deal.request_id, None):
            self._result.rerouted_after_s.append(round(time.monotonic() - killed_s, 3))
        if len(life.lost) >= _MOST_ATTEMPTS:
            return None
        return self._choice(life.deal, (life.deal.worker + len(life.lost)) % NUM_PREFILL_WORKERS)

    def _choice(self, deal: Deal, worker: int) -> PrefillChoice | None:
        choice = self._writers[worker].choice
        return replace(choice, lend=deal.lend) if choice is not None else None
