"""Which tokens the next step computes on a decode worker. Pure: no torch, clock, thread or network.

    waiting --admit--> running --finish--> gone          a running sample either prefills (more than one
       ^                  |                              token of it is missing) or decodes (exactly one)
       +-----preempt------+

A step holds one token of every decoding sample and a bounded chunk of prompt tokens, so that it never
takes longer than `max_step_s`. Memory for a whole prompt is taken at admission; a decoding sample takes a
block at a time, and where none is left the least urgent sample is preempted: it gives its blocks back
(published ones stay as cache) and computes them again later, its output unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from baton.errors import BatonError, IntegrityError
from baton.scheduling import sample_blocks
from baton.scheduling.block_copies import BlockCopies
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.block_order import Wish, grant, insert, urgency
from baton.scheduling.sample import Sample, has_turn, sampling_state
from baton.scheduling.step_plan import Drawn, NewSample, Slice, StepOutput, StepPlan
from baton.scheduling.step_time import StepTimeModel
from baton.types import FinishReason, PositionLogprobs


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """`max_step_s` bounds a step's time, `max_chunk_tokens` its prompt tokens whatever the rate."""

    max_model_len: int
    max_running: int = 64
    max_step_s: float = 0.25
    min_chunk_tokens: int = 16
    max_chunk_tokens: int = 512


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step did for one sample."""

    sample: Sample
    token_id: int
    logprobs: PositionLogprobs | None
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class StepResult:
    """`prompt_logprobs`: new ones, per sample. `failed`: samples that cannot go on."""

    advances: Sequence[Advance]
    prompt_logprobs: Sequence[tuple[Sample, Sequence[PositionLogprobs]]]
    failed: Sequence[tuple[Sample, BatonError]]


class Scheduler:
    """Samples in, step plans out. The caller runs each plan and hands the output to `update`."""

    def __init__(self, blocks: BlockManager, limits: SchedulerLimits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.step_time = StepTimeModel()
        self._waiting: list[Sample] = []  # most urgent first
        self._running: list[Sample] = []  # most urgent first
        self._reserved: list[Sample] = []  # blocks taken, KV on its way from another worker
        self._held_back: Sample | None = None  # the most urgent who could not reserve
        self._lent: dict[int, Sequence[int]] = {}  # blocks that another worker reads, by loan
        self._by_handle: dict[int, Sample] = {}
        self._siblings: dict[int, list[Sample]] = {}  # lead's handle -> samples that part from it
        self._added: list[NewSample] = []
        self._removed: list[int] = []
        self._copies = BlockCopies(blocks)
        self._planned: list[Sample] = []

    # What the scheduler holds

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens still to be computed, of waiting and of running samples."""
        return sum(s.num_missing for s in (*self._waiting, *self._running) if s.num_missing > 1)

    @property
    def samples(self) -> Iterable[Sample]:
        return self._by_handle.values()

    @property
    def planned(self) -> Sequence[Sample]:
        """The samples of the step that was scheduled last and is not over."""
        return self._planned

    def check_integrity(self) -> None:
        tables = [sample.block_table for sample in self.samples]
        self.blocks.check_integrity([*tables, *self._lent.values(), self._copies.sources])
        self._copies.check_integrity(self.samples)

    # Samples come and go

    def add(self, sample: Sample, siblings: Sequence[Sample] = ()) -> None:
        """Queues `sample`. `siblings` are further samples of the same prompt, none with output yet:
        they wait until the prompt is computed and then go on from it."""
        for each in (sample, *siblings):
            self._by_handle[each.handle] = each
            self._added.append(sampling_state(each))
        if siblings:
            self._siblings[sample.handle] = list(siblings)
        self._enqueue(sample)

    # Samples whose prompt another worker computes

    def reserve(self, wanting: Iterable[Sample]) -> list[Sample]:
        """Takes blocks for the prompts of those of `wanting` whose turn it is, and says whose: their KV will
        be written by somebody else. Blocks that are cached here already come first in their tables. They
        pass nobody who waits for memory here, nor does anybody pass them: the rest is to ask again before
        every step."""
        by_urgency = sorted(wanting, key=urgency)
        self._held_back = None
        if not by_urgency:
            return []
        wishes = [Wish(sample, at_once=False) for sample in self._waiting]
        wishes += [Wish(sample, at_once=True) for sample in by_urgency]
        wishes.sort(key=lambda wish: urgency(wish.sample))
        num_places = self.limits.max_running - len(self._running) - len(self._reserved)
        reserved = grant(wishes, self.blocks, self._num_spare, max(0, num_places))
        for sample in reserved:
            self._by_handle[sample.handle] = sample
        self._reserved += reserved
        self._held_back = next(iter(by_urgency[len(reserved) :]), None)
        return reserved

    def join(self, sample: Sample, siblings: Sequence[Sample], num_computed: int) -> None:
        """The KV of the first `num_computed` tokens of a reserved sample is there and verified: it and
        its siblings go on from it. Every sample's first token has been appended."""
        self._reserved.remove(sample)
        sample.num_computed = num_computed
        sample_blocks.publish(sample, self.blocks)
        for each in (sample, *siblings):
            self._by_handle[each.handle] = each
            self._added.append(sampling_state(each))
        insert(self._running, sample)
        for sibling in siblings:
            self._part(sample, sibling)

    def give_up(self, sample: Sample, num_verified: int, *, quarantine: bool) -> list[int]:
        """Ends a reservation. The KV of the first `num_verified` tokens is good and stays as cache. The
        other blocks that were to be written are freed, or with `quarantine` returned: somebody may still
        write them, so they are free only once `blocks.lift` says so."""
        self._reserved.remove(sample)
        del self._by_handle[sample.handle]
        sample.num_computed = max(sample.num_computed, num_verified)
        sample_blocks.publish(sample, self.blocks)
        unsafe: list[int] = []
        if quarantine:
            unsafe = sample.block_table[sample.num_published :]
            del sample.block_table[sample.num_published :]
            self.blocks.quarantine(unsafe)
        self._give_back(sample)
        return unsafe

    def lend(self, loan: int, sample: Sample) -> Sequence[int]:
        """The published blocks of `sample`, which stay as they are until `end_loan`, whatever becomes of
        the sample."""
        self._lent[loan] = blocks = sample.block_table[: sample.num_published]
        self.blocks.share(blocks)
        return blocks

    def end_loan(self, loan: int) -> None:
        self.blocks.release(self._lent.pop(loan))

    def remove(self, sample: Sample) -> None:
        """Forgets `sample` (finished or cancelled) and gives its blocks back. The siblings of a lead that
        is removed before its prompt is computed are promoted: the first of them leads."""
        if self._by_handle.pop(sample.handle, None) is None:
            return
        for queue in (self._waiting, self._running):
            if sample in queue:
                queue.remove(sample)
        self._give_back(sample)
        if any(new.handle == sample.handle for new in self._added):
            self._added = [new for new in self._added if new.handle != sample.handle]
        else:
            self._removed.append(sample.handle)
        siblings = self._siblings.pop(sample.handle, [])
        for lead, others in self._siblings.items():
            self._siblings[lead] = [other for other in others if other is not sample]
        if siblings:
            siblings[0].num_prompt_logprobs = sample.num_prompt_logprobs
            self._siblings[siblings[0].handle] = siblings[1:]
            self._enqueue(siblings[0])

    # One step

    def schedule(self) -> StepPlan | None:
        """The next step, or None where there is nothing to do."""
        slices = list(self._decode_slices())
        num_decodes = len(slices)
        budget = self.step_time.chunk_budget(
            self.limits.max_step_s,
            num_decodes,
            smallest=self.limits.min_chunk_tokens,
            largest=self.limits.max_chunk_tokens,
        )
        slices += self._prefill_slices(budget)
        if not slices:
            return None
        plan = StepPlan(slices, self._added, self._removed, self._copies.take())
        self._added, self._removed = [], []
        return plan

    def update(self, plan: StepPlan, output: StepOutput) -> StepResult:
        """Takes the step's results into the samples; finished ones are still to be removed."""
        self._copies.done()
        planned, self._planned = self._planned, []
        failed = [(planned[index], error) for index, error in output.failed_slices.items()]
        if not output.computed:
            return StepResult((), (), failed)
        failed += [(self._by_handle[handle], error) for handle, error in output.failed]
        num_decodes = sum(len(piece.token_ids) == 1 for piece in plan.slices)
        self.step_time.observe(plan.num_tokens - num_decodes, num_decodes, output.elapsed_s)
        prompt_logprobs = []
        for index, (sample, piece) in enumerate(zip(planned, plan.slices, strict=True)):
            sample.num_computed = piece.end
            sample_blocks.publish(sample, self.blocks)
            if index in output.prompt_logprobs:
                fresh = sample.take_prompt_logprobs(piece.start, output.prompt_logprobs[index])
                prompt_logprobs.append((sample, fresh))
        return StepResult([self._advance(drawn) for drawn in output.drawn], prompt_logprobs, failed)

    # Decode

    def _decode_slices(self) -> Iterator[Slice]:
        """One token of every decoding sample, most urgent first; preempts from the other end."""
        index = 0
        while index < len(self._running):
            sample = self._running[index]
            if sample.num_missing == 1 and has_turn(sample, self._planned):
                if not self._grow(sample):
                    continue  # it preempted itself: the list is shorter now
                yield self._slice(sample, 1)
            index += 1

    def _grow(self, sample: Sample) -> bool:
        """Makes room for one more token; False where `sample` itself had to yield."""
        if sample.num_computed < len(sample.block_table) * self.blocks.block_size:
            return True
        while True:
            taken = self.blocks.allocate(1)
            if taken is not None:
                sample.block_table += taken
                return True
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sample:
                return False

    def _preempt(self, sample: Sample) -> None:
        self._running.remove(sample)
        self._give_back(sample)
        sample.num_preemptions += 1
        self._enqueue(sample)

    # Prefill

    def _prefill_slices(self, budget: int) -> Iterator[Slice]:
        for sample in self._running:
            if budget > 0 and sample.num_missing > 1 and has_turn(sample, self._planned):
                piece = self._slice(sample, min(budget, sample.num_missing))
                budget -= len(piece.token_ids)
                yield piece
        while budget > 0 and self._has_room():
            first = next((s for s in self._waiting if has_turn(s, self._planned)), None)
            if first is None:
                return
            if self._held_back is not None and urgency(self._held_back) < urgency(first):
                return
            if not self._admit(first):
                return
            piece = self._slice(first, min(budget, first.num_missing))
            budget -= len(piece.token_ids)
            yield piece

    def _admit(self, sample: Sample) -> bool:
        """Takes memory for all tokens of `sample`; False where there is too little."""
        if not sample_blocks.take(sample, self.blocks, self._num_spare()):
            return False
        self._waiting.remove(sample)
        insert(self._running, sample)
        return True

    def _has_room(self) -> bool:
        return len(self._running) + len(self._reserved) < self.limits.max_running

    def _num_spare(self) -> int:
        """Growth of those who run comes first: otherwise admission and preemption take turns."""
        return len(self._running) // self.blocks.block_size + 1 if self._running else 0

    # Bookkeeping

    def _give_back(self, sample: Sample) -> None:
        self._copies.drop(sample)
        sample_blocks.give_back(sample, self.blocks)

    def _slice(self, sample: Sample, num_tokens: int) -> Slice:
        start = sample.num_computed
        end = start + num_tokens
        draws: tuple[int, ...] = ()
        if end == len(sample.token_ids):
            siblings = self._siblings.get(sample.handle, ())
            draws = (sample.handle, *(sibling.handle for sibling in siblings))
        targets, top = sample.prompt_targets(start, end)
        self._planned.append(sample)
        return Slice(
            sample.token_ids[start:end], start, tuple(sample.block_table), draws, targets, top
        )

    def _advance(self, drawn: Drawn) -> Advance:
        sample = self._by_handle[drawn.handle]
        for sibling in self._siblings.pop(sample.handle, ()):
            self._part(sample, sibling)
        sample.token_ids.append(drawn.token_id)
        reason = sample.finish_reason(self.limits.max_model_len)
        return Advance(sample, drawn.token_id, drawn.logprobs, reason)

    def _part(self, lead: Sample, sibling: Sample) -> None:
        """`sibling` goes on from the prompt that `lead` computed: full blocks are shared, the partial
        last one is copied before anybody writes into it. Where no block is left it waits instead."""
        sibling.num_prompt_logprobs = lead.num_prompt_logprobs
        num_full, num_partial = divmod(lead.num_computed, self.blocks.block_size)
        copy = self.blocks.allocate(1 if num_partial else 0)
        if copy is None or len(self._running) >= self.limits.max_running:
            self.blocks.release(copy or [])
            self._enqueue(sibling)  # and computes the prompt again, mostly from cache
            return
        shared = lead.block_table[:num_full]
        self.blocks.share(shared)
        sibling.block_table = shared + copy
        if copy:
            self._copies.queue(lead.block_table[num_full], sibling)
        sibling.num_computed = lead.num_computed
        sibling.num_published = num_full
        sibling.num_cached_tokens = lead.num_cached_tokens
        insert(self._running, sibling)

    def _enqueue(self, sample: Sample) -> None:
        if -(-len(sample.token_ids) // self.blocks.block_size) > self.blocks.num_blocks:
            raise IntegrityError(f"sample {sample.handle} can never fit the pool")
        insert(self._waiting, sample)
