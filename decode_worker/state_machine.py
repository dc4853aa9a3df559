"""The life of every request on a decode worker: typed events in, commands out. Pure.

    Start --+--local--> computing -----------------------------+--> finished   every sample stopped
            |              ^  ^                                 +--> cancelled  Cancel, or its router left
            |  no prefill  |  | KV verified, first token here   +--> expired    its deadline passed
            |  worker left |  |                                 +--> failed     the engine could not
            +--remote--> reserving --> receiving
                           ^   blocks      |
                           +---rerouting <-+ the prefill worker failed or was lost

    computing   its samples are the scheduler's business
    reserving   waits for blocks of its own before it asks a prefill worker for anything
    receiving   its blocks are being written; the first token may have reached the client already
    rerouting   waits for the router to name another prefill worker, or none

Whatever ends a request gives its blocks back in the same call and tells its router exactly once
(`Finished`), except where the router itself is gone. Blocks that somebody may still write are quarantined
until `Fenced`. Words for routers are collected per step, because one message carries a whole step; orders
to the hand-off (`AskPrefill`, `Abandon`) travel beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from baton import instants
from baton.errors import BatonError, Cancelled, DeadlineExceeded, Draining, InvalidArgument
from baton.scheduling.sample import Sample
from baton.scheduling.step_plan import StepOutput, StepPlan
from baton.types import (
    FinishReason,
    HandOffReport,
    PositionLogprobs,
    PrefillChoice,
    Role,
)
from decode_worker.door import refusal
from decode_worker.messages import (
    Abandon,
    AskPrefill,
    Cancel,
    Commands,
    Event,
    Fenced,
    FirstTokens,
    HandOffDone,
    HandOffFailed,
    Key,
    LendOver,
    Order,
    PrefillAccount,
    Reroute,
    RouterLost,
    Start,
    Unreadable,
)
from decode_worker.outboxes import Outboxes
from decode_worker.scheduler import Scheduler, StepResult


@dataclass(slots=True, eq=False)
class _Request:
    """While a hand-off is in progress `transfer` names it, `remote` is the sample whose blocks are
    written, with the KV of `num_transferred` tokens, and `account` is there once the prompt is computed."""

    start: Start
    live: list[Sample]  # not yet ended
    samples: list[Sample]
    prefill: PrefillChoice | None = None
    transfer: int | None = None
    remote: Sample | None = None
    num_transferred: int = 0
    account: PrefillAccount | None = None
    drawn: set[int] = field(default_factory=set)  # samples that the prefill worker drew for
    hand_off: HandOffReport | None = None
    instants: dict[str, float] = field(default_factory=dict)

    def note(self, report: HandOffReport, instants_s: Mapping[str, float]) -> None:
        """What a hand-off came to; instants of an earlier one stand."""
        self.hand_off = report
        for name, at_s in instants_s.items():
            self.instants.setdefault(name, at_s)

    @property
    def key(self) -> Key:
        return self.start.key

    @property
    def deadline_s(self) -> float | None:
        return self.start.deadline_s


class DecodeRequests:
    """All requests of one pool. Every method returns at once; `take_commands` says what to send."""

    def __init__(self, scheduler: Scheduler, vocab_size: int) -> None:
        self.scheduler = scheduler
        self._vocab_size = vocab_size
        self._requests: dict[Key, _Request] = {}
        self._request_of: dict[int, _Request] = {}  # by sample handle
        self._handles = count(1)
        self._transfers = count(1)
        self._request_of_transfer: dict[int, _Request] = {}
        self._reserving: list[_Request] = []
        self._quarantined: dict[int, list[int]] = {}  # transfer -> blocks it may still write
        self._outboxes = Outboxes()
        self._orders: list[Order] = []
        self._draining = False

    # As its Host sees it

    @property
    def name(self) -> Role:
        return Role.DECODE

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def start_draining(self) -> None:
        """From now on every Start is refused."""
        self._draining = True

    @property
    def next_deadline_s(self) -> float | None:
        deadlines = [r.deadline_s for r in self._requests.values() if r.deadline_s is not None]
        return min(deadlines, default=None)

    def take_commands(self) -> Commands:
        """What is to be done and said since the last call, each in order."""
        first = self._outboxes.tells_first
        commands = Commands(self._orders, self._outboxes.take(), first)
        self._orders = []
        return commands

    # Events

    def handle(self, event: Event, now_s: float) -> None:
        match event:
            case Start():
                self._start(event, now_s)
            case Cancel(key, sample_index):
                if request := self._requests.get(key):
                    self._cancel(request, sample_index, now_s)
            case Unreadable(key, error):
                self._end_or_refuse(key, error, now_s)
            case RouterLost(router):
                for request in [r for r in self._requests.values() if r.key[0] == router]:
                    self._end(request, now_s, Cancelled("the router's stream ended"))
                self._outboxes.forget(router)
            case Reroute(key, prefill):
                if request := self._requests.get(key):
                    self._begin(request, prefill, now_s)
            case FirstTokens(transfer):
                if request := self._request_of_transfer.get(transfer):
                    self._first_tokens(request, event, now_s)
            case HandOffDone(transfer):
                if request := self._request_of_transfer.get(transfer):
                    self._join(request, event, now_s)
                else:  # given up meanwhile; complete, so nobody writes it any more
                    self._fenced(transfer)
            case HandOffFailed(transfer):
                if request := self._request_of_transfer.get(transfer):
                    self._hand_off_failed(request, event, now_s)
                elif event.fenced:
                    self._fenced(transfer)
            case Fenced(transfer):
                self._fenced(transfer)
            case LendOver(transfer):
                self.scheduler.end_loan(transfer)

    def fail(self, event: Event, error: BatonError, now_s: float) -> None:
        match event:
            case Start(key) | Cancel(key) | Unreadable(key) | Reroute(key):
                self._end_or_refuse(key, error, now_s)
            case FirstTokens(transfer) | HandOffDone(transfer) | HandOffFailed(transfer):
                if request := self._request_of_transfer.get(transfer):
                    self._end(request, now_s, error)
            case RouterLost() | Fenced() | LendOver():
                raise error
        self.scheduler.check_integrity()

    def _expire(self, now_s: float) -> None:
        for request in list(self._requests.values()):
            if request.deadline_s is not None and now_s >= request.deadline_s:
                self._end(request, now_s, DeadlineExceeded("the deadline passed while decoding"))

    def fail_all(self, error: BatonError, now_s: float) -> None:
        for request in list(self._requests.values()):
            self._end(request, now_s, error)

    # Steps

    def schedule(self, now_s: float) -> StepPlan | None:
        """The next step. Requests whose deadline has passed end first; None where nothing is to do."""
        self._expire(now_s)
        self._reserve(now_s)
        plan = self.scheduler.schedule()
        for new in plan.added if plan else ():
            if request := self._request_of.get(new.handle):
                request.instants.setdefault(instants.PREFILL_START, now_s)
        self._outboxes.turns(self.scheduler.planned, self._key_of, self._requests)
        return plan

    def _key_of(self, sample: Sample) -> Key:
        return self._request_of[sample.handle].key

    def update(self, plan: StepPlan, output: StepOutput, now_s: float) -> None:
        result = self.scheduler.update(plan, output)
        for sample, error in result.failed:
            if request := self._request_of.get(sample.handle):
                self._end(request, now_s, error)
        self._report(result, now_s)

    def _report(self, result: StepResult, now_s: float) -> None:
        for sample, logprobs in result.prompt_logprobs:
            if request := self._request_of.get(sample.handle):
                self._outboxes.prompt_logprobs(request.key, logprobs)
        for advance in result.advances:
            sample = advance.sample
            request = self._request_of.get(sample.handle)
            if request is None:
                continue  # another sample of it failed in this step
            if instants.FIRST_TOKEN not in request.instants:
                request.instants[instants.PREFILL_END] = now_s
                request.instants[instants.DECODE_START] = now_s
            self._say(request, sample, advance.token_id, advance.logprobs, now_s)
            if advance.finish_reason is not None:
                self._end_sample(request, sample, advance.finish_reason, now_s)

    def _say(
        self,
        request: _Request,
        sample: Sample,
        token_id: int,
        logprobs: PositionLogprobs | None,
        now_s: float,
    ) -> None:
        self._outboxes.token(request.key, sample, token_id, logprobs)
        request.instants.setdefault(instants.FIRST_TOKEN, now_s)
        if sample.suspected:
            self._suspect(request, suspected=False)

    @staticmethod
    def _suspect(request: _Request, *, suspected: bool) -> None:
        for sample in request.samples:
            sample.suspected = suspected

    # Transitions

    def _start(self, event: Start, now_s: float) -> None:
        if error := self._refusal(event, now_s):
            self._outboxes.refused(event.key, error, len(event.prompt_token_ids), now_s)
            return
        samples = [self._sample(event, index, now_s) for index in range(event.params.n)]
        request = _Request(event, list(samples), samples)
        self._requests[event.key] = request
        self._outboxes.begin(event.key)
        for sample in samples:
            self._request_of[sample.handle] = request
        for sample in samples:
            reason = sample.finish_reason(self.scheduler.limits.max_model_len)
            if reason is not None:
                self._end_sample(request, sample, reason, now_s)
        if request.live:
            self._begin(request, event.prefill, now_s)

    def _begin(self, request: _Request, prefill: PrefillChoice | None, now_s: float) -> None:
        """Sends the prompt its way. Samples that have parted already are computed here: each of them
        has tokens of its own."""
        parted = len(request.live) > 1 and any(s.num_output_tokens for s in request.live)
        request.prefill = None if parted else prefill
        if request.prefill is not None:
            self._reserving.append(request)
            self._reserve(now_s)
            return
        fresh = [sample for sample in request.live if not sample.num_output_tokens]
        for sample in request.live:
            if sample.num_output_tokens:
                self.scheduler.add(sample)
        if fresh:
            self.scheduler.add(fresh[0], fresh[1:])

    # The hand-off

    def _reserve(self, now_s: float) -> None:
        """Asks for the prefill of everybody who can have blocks now."""
        for lead in self.scheduler.reserve(request.live[0] for request in self._reserving):
            request = self._request_of[lead.handle]
            self._reserving.remove(request)
            start, prefill = request.start, request.prefill
            assert prefill is not None
            request.remote, request.num_transferred = lead, len(lead.token_ids)
            transfer = request.transfer = next(self._transfers)
            self._request_of_transfer[transfer] = request
            lends = prefill.lend and lead.num_published > 0
            self._orders.append(
                AskPrefill(
                    transfer=transfer,
                    prefill=prefill,
                    request_id=start.request_id,
                    attempt=start.attempt,
                    token_ids=list(lead.token_ids),
                    num_prompt_tokens=lead.num_prompt_tokens,
                    first_sample_index=lead.sample_index,
                    params=start.params,
                    eos_token_ids=start.eos_token_ids,
                    salt=start.salt,
                    priority=start.priority,
                    deadline_s=start.deadline_s,
                    first_block=lead.num_published,
                    destination_blocks=lead.block_table[lead.num_published :],
                    lent_blocks=self.scheduler.lend(transfer, lead) if lends else (),
                    suspected=lead.suspected,
                )
            )

    def _first_tokens(self, request: _Request, event: FirstTokens, now_s: float) -> None:
        remote = request.remote
        assert remote is not None
        request.account = event.account
        # A prefill worker gives them from the start, also after another one had given them.
        if fresh := remote.take_prompt_logprobs(0, event.prompt_logprobs):
            self._outboxes.prompt_logprobs(request.key, fresh)
            for sample in request.samples:
                sample.num_prompt_logprobs = remote.num_prompt_logprobs
        by_index = {sample.sample_index: sample for sample in request.live}
        for token in event.tokens:
            drawer = by_index.get(token.sample_index)
            if drawer is not None and token.token_id < self._vocab_size:
                request.drawn.add(token.sample_index)
                drawer.token_ids.append(token.token_id)
                self._say(request, drawer, token.token_id, token.logprobs, now_s)
        for sample in list(request.live):
            reason = sample.finish_reason(self.scheduler.limits.max_model_len)
            if reason is not None:
                self._end_sample(request, sample, reason, now_s)

    def _join(self, request: _Request, done: HandOffDone, now_s: float) -> None:
        """Goes on to decode: every block is here, and before them came the first tokens."""
        remote = request.remote
        assert remote is not None
        assert request.account is not None
        request.note(done.report, {**request.account.instants, **done.instants})
        if any(sample.sample_index not in request.drawn for sample in request.live):
            # The prefill worker could not draw: the last token is computed again, and drawn from here.
            self._give_up(request, request.num_transferred, fenced=True)
            self._begin(request, None, now_s)
            return
        request.instants.setdefault(instants.DECODE_START, now_s)
        siblings = [sample for sample in request.live if sample is not remote]
        self.scheduler.join(remote, siblings, request.num_transferred)
        self._forget_transfer(request)
        if (
            remote not in request.live
        ):  # its first token ended it, and the others have parted from it
            self.scheduler.remove(remote)

    def _hand_off_failed(self, request: _Request, event: HandOffFailed, now_s: float) -> None:
        """What is wrong with the request itself is wrong everywhere; all else goes on elsewhere."""
        self._give_up(request, event.num_verified, fenced=event.fenced)
        if isinstance(event.error, InvalidArgument):
            self._end(request, now_s, event.error)
            return
        if event.computing:
            self._suspect(request, suspected=True)
        self._outboxes.prefill_lost(request.key, event.error, computing=event.computing)

    def _give_up(self, request: _Request, num_verified: int, *, fenced: bool) -> None:
        """Lets the blocks of a hand-off go; those that may still be written are quarantined."""
        transfer, remote = request.transfer, request.remote
        assert transfer is not None
        assert remote is not None
        self._forget_transfer(request)
        unsafe = self.scheduler.give_up(remote, num_verified, quarantine=not fenced)
        if not fenced:
            self._quarantined[transfer] = unsafe
            self._orders.append(Abandon(transfer))

    def _forget_transfer(self, request: _Request) -> None:
        assert request.transfer is not None
        del self._request_of_transfer[request.transfer]
        request.transfer = request.remote = request.account = None
        request.drawn.clear()

    def _fenced(self, transfer: int) -> None:
        self.scheduler.blocks.lift(self._quarantined.pop(transfer, ()))

    def _refusal(self, event: Start, now_s: float) -> BatonError | None:
        if self._draining:
            return Draining("the worker is leaving")
        if event.key in self._requests:
            return InvalidArgument("is in use on this stream", field="key")
        return refusal(event, self.scheduler.limits.max_model_len, self._vocab_size, now_s)

    def _end_or_refuse(self, key: Key, error: BatonError, now_s: float) -> None:
        """Its router hears `error` once, whether the request has begun or not."""
        if request := self._requests.get(key):
            self._end(request, now_s, error)
        else:
            self._outboxes.refused(key, error, 0, now_s)

    def _sample(self, event: Start, index: int, now_s: float) -> Sample:
        output = event.output_token_ids[index] if event.output_token_ids else ()
        return Sample(
            handle=next(self._handles),
            sample_index=index,
            params=event.params,
            token_ids=[*event.prompt_token_ids, *output],
            num_prompt_tokens=len(event.prompt_token_ids),
            eos_token_ids=frozenset(event.eos_token_ids),
            salt=event.salt,
            priority=event.priority,
            arrival_s=now_s,
            suspected=event.suspected,
        )

    def _cancel(self, request: _Request, sample_index: int | None, now_s: float) -> None:
        if sample_index is None:
            self._end(request, now_s, Cancelled("the client cancelled"))
            return
        for sample in [s for s in request.live if s.sample_index == sample_index]:
            self._end_sample(request, sample, FinishReason.CANCELLED, now_s)

    def _end_sample(
        self, request: _Request, sample: Sample, reason: FinishReason, now_s: float
    ) -> None:
        self._outboxes.sample_ended(request.key, sample, reason)
        if sample is not request.remote:
            self.scheduler.remove(sample)
        request.live.remove(sample)
        if not request.live:
            self._end(request, now_s, None)

    def _end(self, request: _Request, now_s: float, error: BatonError | None) -> None:
        if request.account is not None:  # it ends before its blocks are here
            request.note(request.account.report, request.account.instants)
        if request.transfer is not None:
            self._give_up(request, 0, fenced=False)
        if request in self._reserving:
            self._reserving.remove(request)
        for sample in request.live:
            self.scheduler.remove(sample)
        for sample in request.samples:
            del self._request_of[sample.handle]
        del self._requests[request.key]
        request.instants[instants.FINISHED] = now_s
        self._outboxes.finished(
            request.key, error, request.samples, request.instants, request.hand_off
        )
