"""What the prefill role hears and what it answers: events, orders, words to readers. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from baton.errors import BatonError
from baton.scheduling.step_plan import Drawn
from baton.types import PositionLogprobs, SamplingParams

ReaderId = int  # one stream of a decode worker
Key = tuple[ReaderId, int]  # the reader, and its number for the transfer


# Events


@dataclass(frozen=True, slots=True)
class Ask:
    """Compute `token_ids` and write the KV of logical blocks first_block, first_block + 1, ... into
    `destination_blocks` of the reader's pool. `sample`: draw the token that follows, per sample. `lends`:
    the transport by which the reader writes the blocks before `first_block` here, on demand. `suspected`: a
    worker died while it computed this request."""

    key: Key
    request_id: str
    token_ids: Sequence[int]
    num_prompt_tokens: int
    first_sample_index: int
    params: SamplingParams
    eos_token_ids: Sequence[int]
    salt: bytes
    first_block: int
    destination_blocks: Sequence[int]
    sample: bool = True
    priority: int = 0
    deadline_s: float | None = None
    lends: str = ""
    suspected: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    key: Key


@dataclass(frozen=True, slots=True)
class Confirm:
    """The reader has verified all its blocks."""

    key: Key


@dataclass(frozen=True, slots=True)
class Resend:
    """These logical blocks arrived wrong at the reader."""

    key: Key
    logical: Sequence[int]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What the reader said about this transfer could not be understood."""

    key: Key
    error: BatonError


@dataclass(frozen=True, slots=True)
class ReaderLost:
    reader: ReaderId


@dataclass(frozen=True, slots=True)
class WriteFailed:
    key: Key
    error: BatonError


@dataclass(frozen=True, slots=True)
class Delivered:
    """Some of its blocks have just arrived at the reader's: it is there, and needs the rest."""

    key: Key


@dataclass(frozen=True, slots=True)
class FenceDone:
    """Nothing is read from or written for this transfer any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Borrowed:
    """What was to be borrowed for this transfer is here and verified, or (not `ok`) will not come: it is
    not written any more either way."""

    key: Key
    ok: bool


Event = (
    Ask
    | Cancel
    | Confirm
    | Resend
    | Unreadable
    | ReaderLost
    | WriteFailed
    | Delivered
    | FenceDone
    | Borrowed
)


# Orders to the hand-off


@dataclass(frozen=True, slots=True)
class Open:
    """Logical blocks of this transfer will be written into `destination_blocks`, no others."""

    key: Key
    request_id: str
    destination_blocks: Sequence[int]


@dataclass(frozen=True, slots=True)
class WriteCached:
    """These blocks were cached: every layer of them can leave at once."""

    key: Key
    writes: BlockWrites


@dataclass(frozen=True, slots=True)
class Fence:
    """Stop everything of this transfer; `FenceDone` once that is certain."""

    key: Key


@dataclass(frozen=True, slots=True)
class Borrow:
    """Let the reader write its logical blocks first_block, first_block + 1, ... into `blocks` of this pool,
    by `transport`."""

    key: Key
    request_id: str
    first_block: int
    blocks: Sequence[int]
    transport: str


Order = Open | WriteCached | Fence | Borrow


@dataclass(frozen=True, slots=True)
class BlockWrites:
    """`sources[i]` of this pool is logical block `logical[i]` and goes to `destinations[i]`."""

    logical: Sequence[int]
    sources: Sequence[int]
    destinations: Sequence[int]


# Words to readers


@dataclass(frozen=True, slots=True)
class PromptDone:
    """The prompt is computed; `drawn` in the order of samples, less those that could not be drawn for:
    the reader computes their last token itself."""

    number: int
    drawn: Sequence[tuple[int, Drawn]]  # (sample index, ...)
    prompt_logprobs: Sequence[PositionLogprobs]
    num_cached_tokens: int
    num_lent_tokens: int
    started_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Fenced:
    number: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing will be written for it any more, and it was not completed."""

    number: int
    error: BatonError


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether the coming step computes it; said where that changes."""

    number: int
    computing: bool


Word = PromptDone | Fenced | Failed | Turn


@dataclass(frozen=True, slots=True)
class Commands:
    """`first`: all of it leaves before the step that follows begins, which may be this worker's last."""

    orders: Sequence[Order]
    words: Mapping[ReaderId, Sequence[Word]]
    first: bool = False
