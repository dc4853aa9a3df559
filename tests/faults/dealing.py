"""Which transfer suffers what: a deck of faults, shuffled and dealt, so that every class comes on every
transport however few transfers there are. A function of the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto

BLOCK_SIZE = 8
VOCAB_SIZE = 1000
NUM_STEMS = 6  # beginnings that prompts share
NUM_PREFILL_WORKERS = 2  # of each transport
NUM_BLOCKS = 128  # of each pool


class Fault(Enum):
    NONE = auto()
    FLIP_IN_FLIGHT = auto()
    FLIP_AFTER_WRITE = auto()
    WRITER_KILLED = auto()  # between two moments that the dice choose
    WRITER_STOPPED = auto()  # likewise, and woken when its blocks have long been given up
    CANCELLED = auto()
    STREAM_LOST = auto()  # the connection that carries the words
    LINK_LOST = auto()  # the one that carries the blocks
    DEADLINE = auto()
    SLOW_LINK = auto()  # longer than the progress timeout, and never silent for as long
    POOL_EXHAUSTED = auto()
    HOLD_EXPIRED = auto()  # the confirmation is lost, and the prefill worker's hold runs out
    LATE_WORDS = auto()  # words of an attempt come twice, or when it is long over


# How many of each are in a deck. What takes a second is rare.
_CARDS = {
    Fault.NONE: 24,
    Fault.FLIP_IN_FLIGHT: 8,
    Fault.FLIP_AFTER_WRITE: 8,
    Fault.WRITER_KILLED: 3,
    Fault.WRITER_STOPPED: 2,
    Fault.CANCELLED: 8,
    Fault.STREAM_LOST: 3,
    Fault.LINK_LOST: 3,
    Fault.DEADLINE: 8,
    Fault.SLOW_LINK: 2,
    Fault.POOL_EXHAUSTED: 4,
    Fault.HOLD_EXPIRED: 4,
    Fault.LATE_WORDS: 6,
}
_LONG = frozenset({Fault.SLOW_LINK})


@dataclass(frozen=True, slots=True)
class Deal:
    """One transfer. `at`: how many moments of its writing pass before the fault strikes (three for each
    portion); `after_s` for what strikes at a time; `worker` of the transport computes the prompt."""

    number: int
    transport: str
    fault: Fault
    worker: int
    at: int
    after_s: float
    token_ids: tuple[int, ...]
    lend: bool

    @property
    def worker_id(self) -> str:
        return worker_id(self.transport, self.worker)

    @property
    def request_id(self) -> str:
        """Carries the fault to the worker that is to suffer it."""
        return "/".join((str(self.number), self.fault.name, str(self.at), self.worker_id))


@dataclass(frozen=True, slots=True)
class Directive:
    """What a prefill worker reads in a request's id."""

    fault: Fault
    at: int
    worker_id: str

    @classmethod
    def of(cls, request_id: str) -> Directive:
        _, fault, at, worker = request_id.split("/")
        return cls(Fault[fault], int(at), worker)


def worker_id(transport: str, worker: int) -> str:
    return f"{transport}-{worker}"


def deal(num_transfers: int, seed: int, transports: Sequence[str]) -> Iterator[Deal]:
    dice = random.Random(seed)
    stems = [_tokens(dice, 6 * BLOCK_SIZE) for _ in range(NUM_STEMS)]
    cards: list[tuple[Fault, str]] = []
    for number in range(num_transfers):
        if not cards:
            cards = [
                (fault, transport)
                for fault in Fault
                for transport in transports
                for _ in range(_CARDS[fault])
            ]
            dice.shuffle(cards)
        fault, transport = cards.pop()
        yield Deal(
            number,
            transport,
            fault,
            worker=dice.randrange(NUM_PREFILL_WORKERS),
            at=dice.randrange(9),
            after_s=dice.random(),
            token_ids=_prompt(dice, fault, stems),
            lend=dice.random() < 0.3,
        )


def _prompt(dice: random.Random, fault: Fault, stems: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    if fault is Fault.POOL_EXHAUSTED:
        return _tokens(dice, NUM_BLOCKS * BLOCK_SIZE * 3 // 4)
    if fault in _LONG:
        return _tokens(dice, 20 * BLOCK_SIZE)
    stem = dice.choice(stems)[: dice.randrange(6 * BLOCK_SIZE)]
    return stem + _tokens(dice, dice.randint(1, 10 * BLOCK_SIZE))


def _tokens(dice: random.Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(dice.randrange(VOCAB_SIZE) for _ in range(num_tokens))
