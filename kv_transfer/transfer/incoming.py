"""D's book of one transfer (one attempt to hand one request over): typed events in, commands out. Pure.

    Keep <- matches <- BlockRead <- ReadBlock <- BlocksSent <- P
    AskResend <- differs             (NUM_RESENDS times, then GiveUp)
       GiveUp <------- ReadFailed <- ReadBlock

    open ---> complete                                every block verified, and the prompt computed
      +-----> quarantined ---> closed                 abandoned, timed out, failed
                `- KillWriter after fence_timeout_s   (lifted by WriterStopped)

Time is an argument, and a worker performs the commands. Blocks are named by their logical index in the
request; which block of which pool that is, the worker knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from baton.config import Times
from baton.errors import BatonError, IntegrityError, PeerLost

NUM_RESENDS = 2  # of one block; then whoever wants it recomputes

# Events


@dataclass(frozen=True, slots=True)
class Asked:
    """P has been asked to. Its first word may take longer than the next ones."""


@dataclass(frozen=True, slots=True)
class PeerHeard:
    """P works on this transfer: the progress timeout starts anew."""


@dataclass(frozen=True, slots=True)
class PromptComputed:
    """P has told all about the prompt but where its blocks are."""


@dataclass(frozen=True, slots=True)
class BlocksSent:
    """P says that these consecutive blocks lie in D's pool over all layers, with these checksums."""

    first_block: int
    checksums: Sequence[int]


@dataclass(frozen=True, slots=True)
class BlockRead:
    """The checksum of a block as it lies in D's pool: the answer to ReadBlock."""

    block: int
    checksum: int


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """The other answer to ReadBlock: nobody knows what lies there."""

    block: int
    error: BatonError


@dataclass(frozen=True, slots=True)
class Abandon:
    """D wants the transfer no more, or has been told that it failed."""


@dataclass(frozen=True, slots=True)
class WriterStopped:
    """The proof: P said `Fenced`, the transport has revoked access, or P's process is dead."""


IncomingEvent = (
    Asked
    | PeerHeard
    | PromptComputed
    | BlocksSent
    | BlockRead
    | ReadFailed
    | Abandon
    | WriterStopped
)

# Commands


@dataclass(frozen=True, slots=True)
class ReadBlock:
    block: int


@dataclass(frozen=True, slots=True)
class AskResend:
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """The block is verified, and no write to it is under way: it may be published, and stays whatever
    becomes of the transfer."""

    block: int


@dataclass(frozen=True, slots=True)
class Complete:
    """Every block is verified, and nothing more is to be heard: P may let its sources go."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A writer may still touch these blocks."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AskFence:
    """Revoke at the transport, and tell P to cancel."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The book itself abandoned the transfer: the request goes on elsewhere."""

    error: BatonError


@dataclass(frozen=True, slots=True)
class KillWriter:
    """P owed its `Fenced` and has not answered in time: only its death will lift the quarantine."""


@dataclass(frozen=True, slots=True)
class Lift:
    blocks: tuple[int, ...]


IncomingCommand = (
    ReadBlock | AskResend | Keep | Complete | Quarantine | AskFence | GiveUp | KillWriter | Lift
)


class _Block(Enum):
    EXPECTED = auto()
    ARRIVED = auto()  # its bytes are being read
    VERIFIED = auto()


class Incoming:
    """D's book: which blocks have arrived, whether they are right, and what must not be reused."""

    def __init__(self, blocks: Iterable[int], times: Times) -> None:
        self._times = times
        self._states = dict.fromkeys(blocks, _Block.EXPECTED)
        self._expected_sum: dict[int, int] = {}
        self._num_resends = dict.fromkeys(self._states, 0)
        self._prompt_computed = False
        self._over = False  # complete, or abandoned
        self._quarantined: tuple[int, ...] = ()
        self._deadline_s: float | None = None

    @property
    def deadline_s(self) -> float | None:
        """When `tick` must be called at the latest."""
        return self._deadline_s

    @property
    def num_verified(self) -> int:
        return sum(state is _Block.VERIFIED for state in self._states.values())

    @property
    def is_complete(self) -> bool:
        return self._prompt_computed and self.num_verified == len(self._states)

    @property
    def quarantined(self) -> tuple[int, ...]:
        return self._quarantined

    def handle(self, event: IncomingEvent, now_s: float) -> list[IncomingCommand]:
        if isinstance(event, WriterStopped):
            return self._lift()
        if self._over:
            return []
        match event:
            case Asked():
                self._deadline_s = now_s + self._times.answer_timeout_s
                return []
            case PeerHeard():
                self._wait_on(now_s)
                return []
            case PromptComputed():
                self._prompt_computed = True
                self._wait_on(now_s)
                return self._complete()
            case BlocksSent(first_block, checksums):
                return self._arrived(first_block, checksums, now_s)
            case BlockRead(block, checksum):
                return self._read(block, checksum, now_s)
            case ReadFailed(_, error):
                return self._give_up(error, now_s)
            case Abandon():
                return self._abandon(now_s)

    def tick(self, now_s: float) -> list[IncomingCommand]:
        """What follows from time alone."""
        if self._deadline_s is None or now_s < self._deadline_s:
            return []
        if self._quarantined:
            self._deadline_s = None
            return [KillWriter()]
        return self._give_up(PeerLost("nothing arrived for too long"), now_s)

    def _arrived(
        self, first_block: int, checksums: Sequence[int], now_s: float
    ) -> list[IncomingCommand]:
        blocks = range(first_block, first_block + len(checksums))
        for block in blocks:
            if self._states.get(block) is not _Block.EXPECTED:
                return self._give_up(
                    IntegrityError(f"block {block} was sent, nobody asked for it"), now_s
                )
        for block, checksum in zip(blocks, checksums, strict=True):
            self._states[block] = _Block.ARRIVED
            self._expected_sum[block] = checksum
        self._wait_on(now_s)
        return [ReadBlock(block) for block in blocks]

    def _wait_on(self, now_s: float) -> None:
        """The progress timeout starts anew; where nothing is expected of P it has ended: how long D's own
        reading takes is no fault of P's."""
        expects = not self._prompt_computed or _Block.EXPECTED in self._states.values()
        self._deadline_s = now_s + self._times.progress_timeout_s if expects else None

    def _read(self, block: int, checksum: int, now_s: float) -> list[IncomingCommand]:
        if checksum == self._expected_sum[block]:
            self._states[block] = _Block.VERIFIED
            return [Keep(block), *self._complete()]
        if self._num_resends[block] == NUM_RESENDS:
            error = IntegrityError(f"block {block} arrived wrong {NUM_RESENDS + 1} times")
            return self._give_up(error, now_s)
        self._num_resends[block] += 1
        self._states[block] = _Block.EXPECTED
        self._wait_on(now_s)
        return [AskResend((block,))]

    def _complete(self) -> list[IncomingCommand]:
        if not self.is_complete:
            return []
        self._over, self._deadline_s = True, None
        return [Complete()]

    def _give_up(self, error: BatonError, now_s: float) -> list[IncomingCommand]:
        return [*self._abandon(now_s), GiveUp(error)]

    def _abandon(self, now_s: float) -> list[IncomingCommand]:
        self._over = True
        self._quarantined = tuple(
            block for block, state in self._states.items() if state is not _Block.VERIFIED
        )
        self._deadline_s = now_s + self._times.fence_timeout_s if self._quarantined else None
        return [Quarantine(self._quarantined), AskFence()]

    def _lift(self) -> list[IncomingCommand]:
        """Proof that comes while the transfer is still wanted changes nothing: it may be complete, and
        whoever abandons it later asks for it again."""
        blocks, self._quarantined = self._quarantined, ()
        if not blocks:
            return []
        self._deadline_s = None
        return [Lift(blocks)]
