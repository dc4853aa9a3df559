"""The life of every request on a prefill worker: typed events in, commands out. Pure.

    Ask --> waiting --> computing --> held --Confirm------------------> gone
               |   borrowing ^          |---hold ran out--> fencing --> gone
               +-------------+----------+---Cancel, its reader left, a write failed, its deadline
                                                        --> fencing --> gone

    waiting    for memory and a turn
    borrowing  the reader, who has the beginning of the prompt, writes it here
    computing  chunk by chunk; each layer's complete blocks leave while the next layer is computed
    held       computed; its blocks stay until the reader has verified its copies
    fencing    unwanted; its blocks stay until it is certain that nobody reads or writes for it any more

A request is named by its reader (a stream of a decode worker) and that reader's number for the transfer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from baton.errors import (
    BatonError,
    DeadlineExceeded,
    Draining,
    Internal,
    InvalidArgument,
    Unavailable,
)
from baton.scheduling.sample import Sample
from baton.scheduling.step_plan import StepOutput, StepPlan
from baton.types import PositionLogprobs, Role
from baton.worker import door
from baton.worker.turns import Turns
from prefill_worker.messages import (
    Ask,
    BlockWrites,
    Borrow,
    Borrowed,
    Cancel,
    Commands,
    Confirm,
    Delivered,
    Event,
    Failed,
    Fence,
    Fenced,
    FenceDone,
    Key,
    Open,
    Order,
    PromptDone,
    ReaderId,
    ReaderLost,
    Resend,
    Turn,
    Unreadable,
    Word,
    WriteCached,
    WriteFailed,
)
from prefill_worker.scheduler import PrefillScheduler


@dataclass(slots=True, eq=False)
class _Request:
    ask: Ask
    sample: Sample
    drawing: list[Sample]
    started_s: float | None = None
    held_until_s: float | None = None
    borrows: range | None = None  # these logical blocks, while they are on their way
    num_lent_blocks: int = 0  # that were borrowed
    num_sent_blocks: int = 0  # logical blocks below this have left, or were never asked for
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)
    fencing: BatonError | None = None  # why; the reader hears it once the fence is done
    fence_asked: bool = False


class PrefillRequests:
    """All requests of one pool. `step_writes` says what each layer of the planned step completes."""

    def __init__(
        self, scheduler: PrefillScheduler, block_hold_s: float, vocab_size: int, max_model_len: int
    ) -> None:
        self.scheduler = scheduler
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self.step_writes: list[tuple[Key, BlockWrites]] = []
        self._block_hold_s = block_hold_s
        self._requests: dict[Key, _Request] = {}
        self._request_of: dict[int, _Request] = {}  # by handle of the computed sample
        self._handles = count(1)
        self._words: dict[ReaderId, list[Word]] = {}
        self._orders: list[Order] = []
        self._turns: Turns[Key] = Turns()
        self._tells_first = False
        self._draining = False

    # As its Host sees it

    @property
    def name(self) -> Role:
        return Role.PREFILL

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def start_draining(self) -> None:
        """From now on every Ask is refused."""
        self._draining = True

    @property
    def next_deadline_s(self) -> float | None:
        times = [r.held_until_s for r in self._requests.values() if r.held_until_s is not None]
        times += [r.ask.deadline_s for r in self._requests.values() if r.ask.deadline_s is not None]
        return min(times, default=None)

    def take_commands(self) -> Commands:
        """What is to be done and said since the last call, each in order."""
        commands = Commands(self._orders, self._words, self._tells_first)
        self._orders, self._words, self._tells_first = [], {}, False
        return commands

    # Events

    def handle(self, event: Event, now_s: float) -> None:
        if isinstance(event, Ask):
            self._ask(event, now_s)
            return
        if isinstance(event, ReaderLost):
            for request in [r for key, r in self._requests.items() if key[0] == event.reader]:
                self._fence(request, Unavailable("the decode worker's stream ended"))
            return
        known = self._requests.get(event.key)
        if isinstance(event, Unreadable):
            self._fence_or_refuse(event.key, event.error)
            return
        if known is None:
            if isinstance(event, Cancel):  # gone already: that is all the reader wants to know
                self._say(event.key, Fenced(event.key[1]))
            return
        match event:
            case Cancel() | Confirm():
                self._fence(known, None)
            case Resend(_, logical):
                self._resend(known, logical)
            case WriteFailed(_, error):
                self._fence(known, error)
            case Delivered():
                if known.held_until_s is not None:
                    known.held_until_s = now_s + self._block_hold_s
            case Borrowed(_, ok):
                self._borrowed(known, ok)
            case FenceDone():
                self._forget(known)

    def fail(self, event: Event, error: BatonError, now_s: float) -> None:
        if isinstance(event, ReaderLost):
            raise error
        if isinstance(event, Ask) or event.key in self._requests:
            self._fence_or_refuse(event.key, error)
        self.scheduler.check_integrity()

    def fail_all(self, error: BatonError, now_s: float) -> None:
        for request in list(self._requests.values()):
            self._fence(request, error)

    # Steps

    def schedule(self, now_s: float) -> StepPlan | None:
        """The next step; beside it, what of it leaves layer by layer (`step_writes`)."""
        self._expire(now_s)
        plan = self.scheduler.schedule(now_s)
        for sample, logical in self.scheduler.take_borrowers():
            self._borrow(self._request_of[sample.handle], logical, now_s)
        self.step_writes = []
        for sample, piece in zip(self.scheduler.planned, plan.slices if plan else (), strict=True):
            request = self._request_of[sample.handle]
            if request.started_s is None:
                request.started_s = now_s
                self._send_cached(request)
            num_ready = piece.end // self.scheduler.blocks.block_size
            if piece.end == len(sample.token_ids):
                num_ready = len(sample.block_table)  # the last block leaves partly filled
            if writes := self._take_writes(request, num_ready):
                self.step_writes.append((request.ask.key, writes))
        self._tell_turns()
        return plan

    def _tell_turns(self) -> None:
        """Tells readers what the coming step computes, where that is not what the last one did."""
        planned = self.scheduler.planned
        computing, waiting = self._turns.changes(planned, self._key_of, self._requests)
        for key in computing:
            self._say(key, Turn(key[1], computing=True))
        for key in waiting:
            self._say(key, Turn(key[1], computing=False))
        if computing or waiting:
            self._tells_first = any(sample.suspected for sample in planned)

    def _key_of(self, sample: Sample) -> Key:
        return self._request_of[sample.handle].ask.key

    def update(self, plan: StepPlan, output: StepOutput, now_s: float) -> None:
        step = self.scheduler.update(plan, output)
        if not output.computed:  # so nothing has left
            for key, writes in self.step_writes:
                self._requests[key].num_sent_blocks = writes.logical[0]
        for sample, error in step.failed:
            self._fence(self._request_of[sample.handle], error)
        for sample, logprobs in step.prompt_logprobs:
            self._request_of[sample.handle].prompt_logprobs += logprobs
        for sample, drawn in step.drawn:
            request = self._request_of[sample.handle]
            request.held_until_s = now_s + self._block_hold_s
            index_of = {each.handle: each.sample_index for each in request.drawing}
            assert request.started_s is not None
            self._say(
                request.ask.key,
                PromptDone(
                    request.ask.key[1],
                    [(index_of[each.handle], each) for each in drawn],
                    request.prompt_logprobs,
                    sample.num_cached_tokens,
                    request.num_lent_blocks * self.scheduler.blocks.block_size,
                    request.started_s,
                    now_s,
                ),
            )

    # Transitions

    def _ask(self, ask: Ask, now_s: float) -> None:
        if error := self._refusal(ask):
            self._say(ask.key, Failed(ask.key[1], error))
            return
        drawing = [self._sample(ask, index, now_s) for index in self._indices(ask)]
        request = _Request(ask, self._sample(ask, ask.first_sample_index, now_s), drawing)
        request.num_sent_blocks = ask.first_block
        self._requests[ask.key] = self._request_of[request.sample.handle] = request
        self._turns.begin(ask.key)
        self._orders.append(Open(ask.key, ask.request_id, ask.destination_blocks))
        self.scheduler.add(request.sample, drawing, ask.first_block if ask.lends else 0)

    def _refusal(self, ask: Ask) -> BatonError | None:
        """InvalidArgument where no prefill worker could serve it: then the reader asks no other one."""
        num_blocks = -(-len(ask.token_ids) // self.scheduler.blocks.block_size)
        if self._draining:
            return Draining("the worker is leaving")
        if ask.key in self._requests:
            return Internal("is in use on this stream", field="transfer")
        if len(ask.token_ids) > self._max_model_len or not self.scheduler.fits(len(ask.token_ids)):
            return Unavailable(f"{len(ask.token_ids)} tokens do not fit here", field="token_ids")
        if ask.first_block + len(ask.destination_blocks) != num_blocks:
            return Internal(
                f"the prompt has {num_blocks} blocks, from {ask.first_block} on "
                f"{len(ask.destination_blocks)} are given",
                field="destination_blocks",
            )
        if not 0 < ask.num_prompt_tokens <= len(ask.token_ids):
            return InvalidArgument("is not within the tokens", field="num_prompt_tokens")
        try:
            tokens = {"token_ids": ask.token_ids}
            door.check_request(ask.params, tokens, ask.salt, ask.deadline_s, self._vocab_size)
        except InvalidArgument as error:
            return error
        if ask.first_sample_index >= ask.params.n:
            return InvalidArgument(f"must be below n ({ask.params.n})", field="sample_index")
        return None

    def _indices(self, ask: Ask) -> Iterator[int]:
        """The samples that draw: all of a fresh prompt, the one that goes on of a continuation."""
        if not ask.sample:
            return iter(())
        if len(ask.token_ids) > ask.num_prompt_tokens:
            return iter((ask.first_sample_index,))
        return iter(range(ask.first_sample_index, ask.params.n))

    def _sample(self, ask: Ask, index: int, now_s: float) -> Sample:
        return Sample(
            handle=next(self._handles),
            sample_index=index,
            params=ask.params,
            token_ids=list(ask.token_ids),
            num_prompt_tokens=ask.num_prompt_tokens,
            eos_token_ids=frozenset(ask.eos_token_ids),
            salt=ask.salt,
            priority=ask.priority,
            arrival_s=now_s,
            suspected=ask.suspected,
        )

    def _borrow(self, request: _Request, logical: range, now_s: float) -> None:
        ask, table = request.ask, request.sample.block_table
        request.started_s, request.borrows = now_s, logical
        self._send_cached(request)
        blocks = table[logical.start : logical.stop]
        self._orders.append(Borrow(ask.key, ask.request_id, logical.start, blocks, ask.lends))

    def _borrowed(self, request: _Request, ok: bool) -> None:
        logical, request.borrows = request.borrows, None
        if logical is None or request.fence_asked:
            return
        request.num_lent_blocks = len(logical) if ok else 0
        self.scheduler.borrowed(request.sample, logical.stop if ok else logical.start)

    def _send_cached(self, request: _Request) -> None:
        if writes := self._take_writes(request, request.sample.num_published):
            self._orders.append(WriteCached(request.ask.key, writes))

    def _take_writes(self, request: _Request, num_ready: int) -> BlockWrites | None:
        """The logical blocks below `num_ready` that have not left yet; they count as sent from here on."""
        first, ask = request.num_sent_blocks, request.ask
        if num_ready <= first:
            return None
        request.num_sent_blocks = num_ready
        return BlockWrites(
            range(first, num_ready),
            request.sample.block_table[first:num_ready],
            ask.destination_blocks[first - ask.first_block : num_ready - ask.first_block],
        )

    def _resend(self, request: _Request, logical: Sequence[int]) -> None:
        ask = request.ask
        sent = [index for index in logical if ask.first_block <= index < request.num_sent_blocks]
        if not request.fence_asked and sent:
            sources = [request.sample.block_table[index] for index in sent]
            destinations = [ask.destination_blocks[index - ask.first_block] for index in sent]
            self._orders.append(WriteCached(ask.key, BlockWrites(sent, sources, destinations)))

    def _expire(self, now_s: float) -> None:
        for request in list(self._requests.values()):
            deadline_s, held_until_s = request.ask.deadline_s, request.held_until_s
            if held_until_s is not None and now_s >= held_until_s:
                self._fence(request, Unavailable("nobody confirmed its blocks in time"))
            elif deadline_s is not None and now_s >= deadline_s:
                self._fence(request, DeadlineExceeded("the deadline passed in prefill"))

    def _fence(self, request: _Request, error: BatonError | None) -> None:
        """Its turn to compute ends at once; its blocks follow when the fence is done."""
        if request.fence_asked:
            return
        request.fence_asked = True
        request.fencing = error
        request.held_until_s = None
        self.scheduler.stop(request.sample)
        self._orders.append(Fence(request.ask.key))

    def _fence_or_refuse(self, key: Key, error: BatonError) -> None:
        """Its reader hears `error` once, whether the request has begun or not."""
        if request := self._requests.get(key):
            self._fence(request, error)
        else:
            self._say(key, Failed(key[1], error))

    def _forget(self, request: _Request) -> None:
        key = request.ask.key
        del self._requests[key], self._request_of[request.sample.handle]
        self.scheduler.release(request.sample)
        error = request.fencing
        self._say(key, Failed(key[1], error) if error else Fenced(key[1]))

    def _say(self, key: Key, word: Word) -> None:
        self._words.setdefault(key[0], []).append(word)
