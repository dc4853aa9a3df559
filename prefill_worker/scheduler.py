"""Which prompt tokens the next step computes on a prefill worker. Pure: no torch, clock or network.

    waiting --admit--> computing --last chunk--> held --release--> gone
       |                   ^
       +---> borrowing ----+   its prefix is on its way from the reader, who has it

A step computes chunks up to a budget that keeps it within `max_step_s`. Memory for a whole prompt is taken
at admission and kept. A computed prompt is held, its blocks still referenced, until its reader has
confirmed them. Every step is for the prompt with the least left to be computed, less what it has
gained by waiting: short prompts pass long ones, also those that have begun, but not for ever. Others are
packed into the same step where that saves those who wait more than it costs those already in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from baton.errors import BatonError
from baton.prefill_cost import AGEING
from baton.scheduling import sample_blocks
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.block_order import Wish, grant
from baton.scheduling.sample import Sample, has_turn, sampling_state
from baton.scheduling.step_plan import Drawn, NewSample, Slice, StepOutput, StepPlan
from baton.scheduling.step_time import StepTimeModel
from baton.types import PositionLogprobs


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """`ageing`: see `baton.prefill_cost.AGEING`. `in_order`: first come, first served, and steps packed
    full, as engines without these rules do."""

    max_step_s: float = 0.25
    min_chunk_tokens: int = 64
    max_chunk_tokens: int = 512
    ageing: float = AGEING
    in_order: bool = False


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """What a step did. `computed`: samples that got tokens computed; `drawn`: those whose prompt is
    complete, with the tokens of all samples that part from it and could be drawn for; `failed`: those
    that cannot go on."""

    computed: Sequence[Sample]
    drawn: Sequence[tuple[Sample, Sequence[Drawn]]]
    prompt_logprobs: Sequence[tuple[Sample, Sequence[PositionLogprobs]]]
    failed: Sequence[tuple[Sample, BatonError]]


class PrefillScheduler:
    def __init__(self, blocks: BlockManager, limits: PrefillLimits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.step_time = StepTimeModel()
        self._waiting: list[Sample] = []
        self._borrowing: list[Sample] = []
        self._computing: list[Sample] = []
        self._held: list[Sample] = []
        self._num_lent: dict[int, int] = {}  # handle -> leading blocks that the reader lends
        self._new_borrowers: list[Sample] = []
        self._draws: dict[int, tuple[int, ...]] = {}  # sample's handle -> handles that draw
        self._added: list[NewSample] = []
        self._removed: list[int] = []
        self._planned: list[Sample] = []

    @property
    def num_running(self) -> int:
        return len(self._computing)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens still to be computed, of waiting and of computing prompts."""
        queues = (*self._waiting, *self._borrowing, *self._computing)
        return sum(sample.num_missing for sample in queues)

    def check_integrity(self) -> None:
        samples = (*self._waiting, *self._borrowing, *self._computing, *self._held)
        self.blocks.check_integrity([sample.block_table for sample in samples])

    def fits(self, num_tokens: int) -> bool:
        """Whether a prompt of `num_tokens` can ever be computed here."""
        return num_tokens <= self.blocks.num_blocks * self.blocks.block_size

    def add(self, sample: Sample, drawing: Sequence[Sample], num_lent_blocks: int = 0) -> None:
        """Queues `sample`. `drawing`: the samples that draw from its last row, none where the reader
        draws itself; they need no blocks here. `num_lent_blocks`: how many of its leading blocks can be
        borrowed."""
        self._waiting.append(sample)
        num_usable = min(num_lent_blocks, sample.num_reusable_tokens // self.blocks.block_size)
        if num_usable:
            self._num_lent[sample.handle] = num_usable
        self._draws[sample.handle] = tuple(each.handle for each in drawing)
        self._added += map(sampling_state, drawing)

    def stop(self, sample: Sample) -> None:
        """Computes no more of `sample`, which keeps its blocks until `release`."""
        for queue in (self._waiting, self._borrowing, self._computing):
            if sample in queue:
                queue.remove(sample)
                self._held.append(sample)

    def take_borrowers(self) -> list[tuple[Sample, range]]:
        """Those who have memory by now and lack blocks that are lent to them, with these logical blocks.
        They wait until `borrowed`."""
        borrowers, self._new_borrowers = self._new_borrowers, []
        return [
            (each, range(each.num_published, self._num_lent.pop(each.handle)))
            for each in borrowers
            if each in self._borrowing
        ]

    def borrowed(self, sample: Sample, num_blocks: int) -> None:
        """The KV of the first `num_blocks` blocks of `sample` is here and verified; the rest of it is
        computed."""
        self._borrowing.remove(sample)
        sample.num_computed = max(sample.num_computed, num_blocks * self.blocks.block_size)
        sample_blocks.publish(sample, self.blocks)
        self._computing.append(sample)

    def release(self, sample: Sample) -> None:
        """Forgets `sample`, wherever it is; its blocks stay as cache."""
        for queue in (self._waiting, self._borrowing, self._computing, self._held):
            if sample in queue:
                queue.remove(sample)
                break
        self._num_lent.pop(sample.handle, None)
        sample_blocks.give_back(sample, self.blocks)
        handles = set(self._draws.pop(sample.handle, ()))
        never_planned = {new.handle for new in self._added} & handles
        self._added = [new for new in self._added if new.handle not in never_planned]
        self._removed += handles - never_planned

    def schedule(self, now_s: float) -> StepPlan | None:
        """The next step, or None where nothing can be computed now."""
        budget = self.step_time.chunk_budget(
            self.limits.max_step_s,
            0,
            smallest=self.limits.min_chunk_tokens,
            largest=self.limits.max_chunk_tokens,
        )
        slices = list(self._slices(budget, now_s))
        if not slices:
            return None
        plan = StepPlan(slices, self._added, self._removed)
        self._added, self._removed = [], []
        return plan

    @property
    def planned(self) -> Sequence[Sample]:
        """The samples of the step in progress, in the order of its slices."""
        return self._planned

    def update(self, plan: StepPlan, output: StepOutput) -> PrefillStep:
        """Takes the step's results into the samples; complete ones are held from here on."""
        planned, self._planned = self._planned, []
        failed = [(planned[index], error) for index, error in output.failed_slices.items()]
        if not output.computed:
            return PrefillStep((), (), (), failed)
        self.step_time.observe(plan.num_tokens, 0, output.elapsed_s)
        drawn_by = {drawn.handle: drawn for drawn in output.drawn}
        drawn: list[tuple[Sample, Sequence[Drawn]]] = []
        prompt_logprobs = []
        for index, (sample, piece) in enumerate(zip(planned, plan.slices, strict=True)):
            sample.num_computed = piece.end
            sample_blocks.publish(sample, self.blocks)
            if index in output.prompt_logprobs:
                fresh = sample.take_prompt_logprobs(piece.start, output.prompt_logprobs[index])
                prompt_logprobs.append((sample, fresh))
            if sample.num_missing == 0 and index not in output.failed_slices:
                self._computing.remove(sample)
                self._held.append(sample)
                handles = self._draws[sample.handle]
                drawn.append((sample, [drawn_by[h] for h in handles if h in drawn_by]))
        return PrefillStep(planned, drawn, prompt_logprobs, failed)

    def _slices(self, budget: int, now_s: float) -> Iterator[Slice]:
        self._admit_borrowers(now_s)
        ordered = self._in_turn((*self._computing, *self._waiting), now_s)
        num_tokens, num_packed, has_memory = 0, 0, True
        for index, sample in enumerate(ordered):
            if not has_turn(sample, self._planned):
                continue
            num_behind = len(ordered) - index - 1
            if num_packed and not self._is_worth_packing(
                sample, num_tokens, num_packed, num_behind
            ):
                return
            if not sample.block_table:
                # Whoever is next waits for memory: passing it would starve long prompts.
                could_borrow = sample.handle in self._num_lent
                has_memory = (
                    has_memory and not could_borrow and sample_blocks.take(sample, self.blocks)
                )
                if not has_memory:
                    continue
                self._waiting.remove(sample)
                self._computing.append(sample)
            piece = self._slice(sample, budget - num_tokens)
            num_tokens += len(piece.token_ids)
            num_packed += 1
            yield piece
            if num_tokens >= budget:
                return

    def _admit_borrowers(self, now_s: float) -> None:
        """Whoever can borrow begins with that as soon as there is memory, without passing those who wait for
        it: blocks travel while others compute."""
        if not self._num_lent.keys() & {sample.handle for sample in self._waiting}:
            return
        waiting = self._in_turn(self._waiting, now_s)
        wishes = [Wish(each, at_once=each.handle in self._num_lent) for each in waiting]
        for sample in grant(wishes, self.blocks):
            self._waiting.remove(sample)
            if sample.num_published < self._num_lent[sample.handle]:
                self._borrowing.append(sample)
                self._new_borrowers.append(sample)
            else:
                self._computing.append(sample)

    def _is_worth_packing(
        self, sample: Sample, num_tokens: int, num_packed: int, num_behind: int
    ) -> bool:
        """Whether to add `sample` to a step of `num_tokens`: it and all behind it are spared a step of
        their own, and the `num_packed` in the step wait for its tokens, too."""
        cost = self.step_time.prefill_cost
        if cost is None or self.limits.in_order:
            return True
        num_new = self._num_new(sample)
        lost_s = cost.step_s(num_tokens + num_new) - cost.step_s(num_tokens)
        saved_s = cost.step_s(num_new) - lost_s
        return saved_s * (1 + num_behind) > lost_s * num_packed

    def _slice(self, sample: Sample, budget: int) -> Slice:
        start = sample.num_computed
        end = min(len(sample.token_ids), start + budget)
        draws = self._draws[sample.handle] if end == len(sample.token_ids) else ()
        targets, top = sample.prompt_targets(start, end)
        self._planned.append(sample)
        return Slice(
            sample.token_ids[start:end], start, tuple(sample.block_table), draws, targets, top
        )

    def _in_turn(self, samples: Iterable[Sample], now_s: float) -> list[Sample]:
        """Those that are computed first come first."""
        cost = self.step_time.prefill_cost

        def turn(sample: Sample) -> tuple[float, float, int]:
            if self.limits.in_order:
                return (-sample.priority, sample.arrival_s, sample.handle)
            left_s = cost.prompt_s(self._num_new(sample)) if cost else 0.0
            waited_s = now_s - sample.arrival_s
            return (-sample.priority, left_s - self.limits.ageing * waited_s, sample.handle)

        return sorted(samples, key=turn)

    def _num_new(self, sample: Sample) -> int:
        """Tokens of `sample` still to be computed; what is cached by now needs not be."""
        if sample.block_table:
            return sample.num_missing
        num_hits = self.blocks.num_matched(sample.extend_block_ids(self.blocks.block_size))
        return max(1, len(sample.token_ids) - num_hits * self.blocks.block_size)
