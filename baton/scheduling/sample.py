"""One sample of one prompt: its tokens, and how much of their KV lies in which blocks.

Pure state: the scheduler decides, the block manager owns the memory.

    token_ids     [ prompt ............. | output ....... ]
    KV            [ computed ................ )              half-open: [0, num_computed)
    block_table   [ b0 | b1 | b2 | b3 ... ]                  covers at least [0, num_computed)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.block_id import ROOT, chain
from baton.scheduling.step_plan import NewSample
from baton.types import BlockId, FinishReason, PositionLogprobs, SamplingParams


@dataclass(slots=True, eq=False)
class Sample:
    """`handle` names it in step plans. `salt` keys its block ids. `suspected`: a worker died while it
    computed it, so no step computes two such; until it has a token."""

    handle: int
    sample_index: int
    params: SamplingParams
    token_ids: list[int]
    num_prompt_tokens: int
    eos_token_ids: frozenset[int]
    salt: bytes
    priority: int = 0
    arrival_s: float = 0.0
    num_computed: int = 0
    num_published: int = 0
    num_cached_tokens: int = 0  # of the first admission: what its user did not pay for
    num_preemptions: int = 0
    num_prompt_logprobs: int = 0  # reported so far
    suspected: bool = False
    block_table: list[int] = field(default_factory=list)
    block_ids: list[BlockId] = field(default_factory=list)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_missing(self) -> int:
        """Tokens whose KV is not there; 1 is a plain decode step."""
        return len(self.token_ids) - self.num_computed

    @property
    def output_token_ids(self) -> Sequence[int]:
        return self.token_ids[self.num_prompt_tokens :]

    def extend_block_ids(self, block_size: int) -> list[BlockId]:
        """The ids of all full blocks of `token_ids`, computed once each."""
        start = len(self.block_ids) * block_size
        if len(self.token_ids) - start >= block_size:
            parent = self.block_ids[-1] if self.block_ids else ROOT
            self.block_ids.extend(
                chain(self.token_ids[start:], block_size, self.salt, parent=parent)
            )
        return self.block_ids

    @property
    def num_reusable_tokens(self) -> int:
        """How many leading tokens may come from cache: all but the last, whose logits are needed, and
        none whose log-probabilities are wanted and not yet reported."""
        if self.params.prompt_logprobs is None:
            return len(self.token_ids) - 1
        if self.num_prompt_logprobs < self.num_prompt_tokens - 1:
            return self.num_prompt_logprobs
        return len(self.token_ids) - 1

    def start_from_cache(self, block_table: list[int], num_hits: int, block_size: int) -> None:
        """Begins on `block_table`, whose first `num_hits` blocks were found in the cache."""
        self.block_table = block_table
        self.num_computed = num_hits * block_size
        self.num_published = num_hits
        if self.num_preemptions == 0:
            self.num_cached_tokens = self.num_computed

    def prompt_targets(self, start: int, end: int) -> tuple[Sequence[int], int]:
        """The prompt tokens whose log-probabilities positions [start, end) give, and how many
        alternatives beside each."""
        if self.params.prompt_logprobs is None:
            return (), 0
        return self.token_ids[start + 1 : min(end + 1, self.num_prompt_tokens)], (
            self.params.prompt_logprobs
        )

    def take_prompt_logprobs(
        self, start: int, logprobs: Sequence[PositionLogprobs]
    ) -> Sequence[PositionLogprobs]:
        """Those of positions start, start + 1, ... that were not reported before (a preempted sample
        computes positions again)."""
        fresh = logprobs[max(0, self.num_prompt_logprobs - start) :]
        self.num_prompt_logprobs += len(fresh)
        return fresh

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Whether its last output token ends it; a pure function of the tokens."""
        if self.num_output_tokens == 0:
            return None
        last = self.token_ids[-1]
        if self.num_output_tokens >= self.params.min_tokens and self.ends(last):
            return FinishReason.STOP
        if self.num_output_tokens >= self.params.max_tokens or len(self.token_ids) >= max_model_len:
            return FinishReason.LENGTH
        return None

    def ends(self, token_id: int) -> bool:
        """Whether `token_id` is one that ends this sample wherever it may."""
        if token_id in self.params.stop_token_ids:
            return True
        return token_id in self.eos_token_ids and not self.params.ignore_eos


def has_turn(sample: Sample, planned: Sequence[Sample]) -> bool:
    """Whether it may be computed in the step that computes `planned`: should that step end the worker, it
    is known by which suspect."""
    return not (sample.suspected and any(other.suspected for other in planned))


def sampling_state(sample: Sample) -> NewSample:
    """What the sampler must know of `sample` before its first draw."""
    return NewSample(
        sample.handle,
        sample.sample_index,
        sample.params,
        sample.token_ids[: sample.num_prompt_tokens],
        sample.output_token_ids,
        tuple(sample.eos_token_ids),
    )
