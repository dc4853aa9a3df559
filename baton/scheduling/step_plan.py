"""What one step computes, as plain data: the scheduler writes a `StepPlan`, the runner answers a
`StepOutput`. No tensors, so that a plan can be broadcast to ranks, logged and replayed.

A *sample* is one sequence of output tokens of one prompt, named by an integer handle. A *slice* is a run
of consecutive tokens of one sample that this step feeds to the model:

        block_table -> [ b0 | b1 | b2 | b3 ]          blocks of block_size tokens
        positions      0 .......... start ... end     half-open: KV of [0, start) is already there,
                                    [slice)           this step writes KV of [start, end)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from baton.errors import BatonError
from baton.types import PositionLogprobs, SamplingParams


@dataclass(frozen=True, slots=True)
class NewSample:
    """The sampling state of a sample before its first draw.

    `prompt_token_ids` and `output_token_ids` (those already produced, forced) feed the penalties; the
    next token drawn has output index len(output_token_ids).
    """

    handle: int
    sample_index: int
    params: SamplingParams
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    eos_token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """Tokens of one sample at positions [start, start + len(token_ids)).

    `draws`: handles of the samples that draw a token from the last row's logits (several where the
    samples of one prompt part ways). `prompt_targets`: tokens whose log-probabilities are wanted, the
    i-th from row i; `prompt_top` alternatives beside each.
    """

    token_ids: Sequence[int]
    start: int
    block_table: Sequence[int]
    draws: tuple[int, ...] = ()
    prompt_targets: Sequence[int] = ()
    prompt_top: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Order: drop `removed`, register `added`, perform `copies`, then run the slices."""

    slices: Sequence[Slice]
    added: Sequence[NewSample] = ()
    removed: Sequence[int] = ()
    copies: Sequence[tuple[int, int]] = ()  # (source block, destination block), whole blocks

    @property
    def num_tokens(self) -> int:
        return sum(len(piece.token_ids) for piece in self.slices)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token drawn for the sample `handle`."""

    handle: int
    token_id: int
    logprobs: PositionLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """`drawn` follows the order of slices and their draws, less the samples in `failed` (handle, error),
    for which no token could be drawn. `prompt_logprobs`: index of the slice -> one entry per target.
    `failed_slices`: index of the slice -> why its log-probabilities are none, or, where nothing of the
    step was `computed`, why that slice could not be."""

    drawn: Sequence[Drawn]
    elapsed_s: float
    prompt_logprobs: dict[int, list[PositionLogprobs]] = field(default_factory=dict)
    failed: Sequence[tuple[int, BatonError]] = ()
    failed_slices: Mapping[int, BatonError] = field(default_factory=dict)
    computed: bool = True
