"""P's book of one transfer (one attempt to hand one request over): typed events in, commands out. Pure.

    Computed(layer, tokens) -> WriteBlocks ... Written -> TellSent(checksums) -> D

    sending ---> held ---> fencing ---> closed        confirmed, cancelled, failed, or
       +-----------------------^                      block_hold_s after the last byte

Time is an argument, and a worker performs the commands. Blocks are named by their logical index in the
request, `first_block` is the first that D lacks. D's book is kv_transfer.transfer.incoming.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from baton.config import Times
from baton.errors import BatonError, IntegrityError, Unavailable

_MODULUS = 1 << 64  # of checksums, see kv_transfer.checksum

# Events


@dataclass(frozen=True, slots=True)
class Computed:
    """KV of tokens [0, num_tokens) is in P's pool; of `layer`, or of all (cached beforehand)."""

    num_tokens: int
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """One WriteBlocks is done, with its part of each block's checksum."""

    blocks: Sequence[int]
    checksums: Sequence[int]


@dataclass(frozen=True, slots=True)
class Failed:
    """A write failed, or the prefill did."""

    error: BatonError


@dataclass(frozen=True, slots=True)
class Resend:
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """D has verified every block."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """D has abandoned the transfer and waits for TellFenced."""


@dataclass(frozen=True, slots=True)
class FenceDone:
    """`Link.fence` has returned."""


OutgoingEvent = Computed | Written | Failed | Resend | Confirmed | Cancel | FenceDone

# Commands


@dataclass(frozen=True, slots=True)
class WriteBlocks:
    layer: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TellSent:
    first_block: int
    checksums: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AllSent:
    """Every block has been written once: the sources are held for `block_hold_s` from here."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Call `Link.fence`, then say FenceDone. No write may be asked of the link any more."""


@dataclass(frozen=True, slots=True)
class TellFenced:
    pass


@dataclass(frozen=True, slots=True)
class TellFailed:
    error: BatonError


@dataclass(frozen=True, slots=True)
class ReleaseBlocks:
    """The transfer is over for P: its sources go back."""


OutgoingCommand = WriteBlocks | TellSent | AllSent | Fence | TellFenced | TellFailed | ReleaseBlocks


@dataclass(slots=True)
class _Leaving:
    """A block on its way: layers still to be written, and the checksum of those that are."""

    num_layers_left: int
    checksum: int = 0


class Outgoing:
    """P's book: what is ready to leave, what has left, and how long its sources stay."""

    def __init__(
        self, *, first_block: int, num_tokens: int, block_size: int, num_layers: int, times: Times
    ) -> None:
        self._times = times
        self._num_tokens = num_tokens
        self._block_size = block_size
        self._first_block = first_block
        self._end_block = -(-num_tokens // block_size)
        self._num_layers = num_layers
        self._next_block = [
            first_block
        ] * num_layers  # per layer, the first not asked to be written
        self._leaving = {
            block: _Leaving(num_layers) for block in range(first_block, self._end_block)
        }
        self._all_sent = False
        self._fencing = False
        self._error: BatonError | None = None
        self._confirmed = False
        self._hold_until_s: float | None = None

    @property
    def deadline_s(self) -> float | None:
        """When `tick` must be called at the latest."""
        return None if self._fencing else self._hold_until_s

    def handle(self, event: OutgoingEvent, now_s: float) -> list[OutgoingCommand]:
        if isinstance(event, FenceDone):
            return self._fenced()
        if self._fencing:
            return []  # nothing but the fence counts any more
        match event:
            case Computed(num_tokens, layer):
                layers = range(self._num_layers) if layer is None else (layer,)
                return [command for each in layers for command in self._ready(each, num_tokens)]
            case Written(blocks, checksums):
                return self._written(blocks, checksums, now_s)
            case Resend(blocks):
                return self._resend(blocks)
            case Failed(error):
                return self._fence(error)
            case Confirmed():
                self._confirmed = True
                return self._fence(None)
            case Cancel():
                return self._fence(None)

    def tick(self, now_s: float) -> list[OutgoingCommand]:
        if self.deadline_s is None or now_s < self.deadline_s:
            return []
        hold_s = self._times.block_hold_s
        return self._fence(
            Unavailable(f"not confirmed within {hold_s} s: the sources are released")
        )

    def _ready(self, layer: int, num_tokens: int) -> list[OutgoingCommand]:
        """A block leaves when it is full; the last one, at the end, as it is."""
        is_end = num_tokens >= self._num_tokens
        end_block = self._end_block if is_end else num_tokens // self._block_size
        blocks = tuple(range(self._next_block[layer], end_block))
        if not blocks:
            return []
        self._next_block[layer] = end_block
        return [WriteBlocks(layer, blocks)]

    def _written(
        self, blocks: Sequence[int], checksums: Sequence[int], now_s: float
    ) -> list[OutgoingCommand]:
        sent: list[tuple[int, int]] = []
        for block, checksum in zip(blocks, checksums, strict=True):
            leaving = self._leaving[block]
            leaving.num_layers_left -= 1
            leaving.checksum = (leaving.checksum + checksum) % _MODULUS
            if not leaving.num_layers_left:
                sent.append((block, leaving.checksum))
                del self._leaving[block]
        commands: list[OutgoingCommand] = list(_told(sent))
        if not self._leaving:
            self._hold_until_s = now_s + self._times.block_hold_s
            if not self._all_sent:
                self._all_sent = True
                commands.append(AllSent())
        return commands

    def _resend(self, blocks: Sequence[int]) -> list[OutgoingCommand]:
        for block in blocks:
            if block in self._leaving or not self._first_block <= block < self._end_block:
                return self._fence(
                    IntegrityError(f"block {block} was not sent, yet is asked again")
                )
        self._leaving |= {block: _Leaving(self._num_layers) for block in blocks}
        self._hold_until_s = None
        return [WriteBlocks(layer, tuple(blocks)) for layer in range(self._num_layers)]

    def _fence(self, error: BatonError | None) -> list[OutgoingCommand]:
        self._fencing, self._error = True, error
        return [Fence()]

    def _fenced(self) -> list[OutgoingCommand]:
        if self._confirmed:
            return [ReleaseBlocks()]
        told: list[OutgoingCommand] = [TellFailed(self._error)] if self._error else []
        return [*told, TellFenced(), ReleaseBlocks()]


def _told(sent: Sequence[tuple[int, int]]) -> Iterable[TellSent]:
    """Consecutive blocks in one message each."""
    begin = 0
    for end in range(1, len(sent) + 1):
        if end == len(sent) or sent[end][0] != sent[end - 1][0] + 1:
            yield TellSent(sent[begin][0], tuple(checksum for _, checksum in sent[begin:end]))
            begin = end
