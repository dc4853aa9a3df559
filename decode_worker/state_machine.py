"""The life of every request on a decode worker: typed events in, commands out. Pure.

    Start ---> computing ---> finished          every sample stopped
                   |--------> cancelled         Cancel, or the router's stream ended
                   |--------> expired           its deadline passed
                   +--------> failed            the engine could not compute it

A request is `computing` from Start until its last sample ends; which of its tokens are computed when is
the scheduler's business. Whatever ends a request gives all its blocks back in the same call and tells its
router exactly once (`Finished`), except where the router itself is gone. Commands are collected per router
and step, because one message carries a whole step (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from baton import instants
from baton.errors import BatonError, Cancelled, DeadlineExceeded, Draining, InvalidArgument
from baton.types import FinishReason, PositionLogprobs, Role, SamplingParams, Usage
from decode_worker.scheduler import Scheduler, StepResult
from engine.batch import StepOutput, StepPlan
from engine.block_manager import BlockManager
from engine.sample import Sample
from engine.step_time import StepTimeModel

RouterId = int  # one stream between a router and this worker
Key = tuple[RouterId, int]  # names a request: the router's stream and the number it chose


# Events


@dataclass(frozen=True, slots=True)
class Start:
    """`output_token_ids`: per sample, forced. `deadline_s` on this process's monotonic clock."""

    key: Key
    request_id: str
    attempt: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[Sequence[int]]
    params: SamplingParams
    eos_token_ids: Sequence[int]
    salt: bytes
    priority: int = 0
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends one sample, or where `sample_index` is None the whole request."""

    key: Key
    sample_index: int | None = None


@dataclass(frozen=True, slots=True)
class RouterLost:
    router: RouterId


Event = Start | Cancel | RouterLost


# Commands


@dataclass(frozen=True, slots=True)
class SampleEnded:
    number: int
    sample_index: int
    reason: FinishReason
    stop_token_id: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last word on a request. `instants` are on this process's monotonic clock."""

    number: int
    error: BatonError | None
    usage: Usage
    instants: Mapping[str, float]
    num_preemptions: int


@dataclass(slots=True)
class Outbox:
    """What one step has to say to one router: columns of tokens, and what ended."""

    keys: list[int] = field(default_factory=list)
    sample_indices: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, PositionLogprobs]] = field(default_factory=list)  # (row, ...)
    prompt_logprobs: list[tuple[int, Sequence[PositionLogprobs]]] = field(default_factory=list)
    ended_samples: list[SampleEnded] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    key: Key
    request_id: str
    deadline_s: float | None
    live: list[Sample]  # not yet ended
    samples: list[Sample]
    instants: dict[str, float] = field(default_factory=dict)


class DecodeRequests:
    """All requests of one pool. Every method returns at once; `take_outboxes` says what to send."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._requests: dict[Key, _Request] = {}
        self._request_of: dict[int, _Request] = {}  # by sample handle
        self._handles = count(1)
        self._outboxes: dict[RouterId, Outbox] = {}
        self._draining = False

    # The role's accounts, as its Host reads them

    @property
    def name(self) -> Role:
        return Role.DECODE

    @property
    def blocks(self) -> BlockManager:
        return self.scheduler.blocks

    @property
    def step_time(self) -> StepTimeModel:
        return self.scheduler.step_time

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    @property
    def num_running(self) -> int:
        return self.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self.scheduler.num_waiting

    @property
    def num_waiting_tokens(self) -> int:
        return self.scheduler.num_waiting_tokens

    def check_integrity(self) -> None:
        self.scheduler.check_integrity()

    def start_draining(self) -> None:
        """From now on every Start is refused."""
        self._draining = True

    @property
    def next_deadline_s(self) -> float | None:
        deadlines = [r.deadline_s for r in self._requests.values() if r.deadline_s is not None]
        return min(deadlines, default=None)

    def take_outboxes(self) -> dict[RouterId, Outbox]:
        outboxes, self._outboxes = self._outboxes, {}
        return outboxes

    # Events

    def handle(self, event: Event, now_s: float) -> None:
        match event:
            case Start():
                self._start(event, now_s)
            case Cancel(key, sample_index):
                if request := self._requests.get(key):
                    self._cancel(request, sample_index, now_s)
            case RouterLost(router):
                for request in [r for r in self._requests.values() if r.key[0] == router]:
                    self._end(request, now_s, Cancelled("the router's stream ended"))
                self._outboxes.pop(router, None)

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
        plan = self.scheduler.schedule()
        for new in plan.added if plan else ():
            if request := self._request_of.get(new.handle):
                request.instants.setdefault(instants.PREFILL_START, now_s)
        return plan

    def update(self, plan: StepPlan, output: StepOutput, now_s: float) -> None:
        self._report(self.scheduler.update(plan, output), now_s)
        for handle, error in output.failed:
            if request := self._request_of.get(handle):
                self._end(request, now_s, error)

    def _report(self, result: StepResult, now_s: float) -> None:
        for sample, logprobs in result.prompt_logprobs:
            router, number = self._request_of[sample.handle].key
            self._outbox(router).prompt_logprobs.append((number, logprobs))
        for advance in result.advances:
            sample = advance.sample
            request = self._request_of[sample.handle]
            router, number = request.key
            outbox = self._outbox(router)
            if advance.logprobs is not None:
                outbox.logprobs.append((len(outbox.keys), advance.logprobs))
            outbox.keys.append(number)
            outbox.sample_indices.append(sample.sample_index)
            outbox.token_ids.append(advance.token_id)
            if instants.FIRST_TOKEN not in request.instants:
                for name in (instants.PREFILL_END, instants.FIRST_TOKEN, instants.DECODE_START):
                    request.instants[name] = now_s
            if advance.finish_reason is not None:
                self._end_sample(request, sample, advance.finish_reason, now_s)

    # Transitions

    def _start(self, event: Start, now_s: float) -> None:
        router, number = event.key
        if error := self._refusal(event, now_s):
            usage = Usage(len(event.prompt_token_ids), 0, 0)
            self._outbox(router).finished.append(
                Finished(number, error, usage, {instants.FINISHED: now_s}, 0)
            )
            return
        samples = [self._sample(event, index, now_s) for index in range(event.params.n)]
        request = _Request(event.key, event.request_id, event.deadline_s, list(samples), samples)
        self._requests[event.key] = request
        for sample in samples:
            self._request_of[sample.handle] = request
        fresh = [sample for sample in samples if not sample.num_output_tokens]
        for sample in samples:
            if sample.num_output_tokens:
                reason = sample.finish_reason(self.scheduler.limits.max_model_len)
                if reason is None:
                    self.scheduler.add(sample)
                else:
                    self._end_sample(request, sample, reason, now_s)
        if fresh:
            self.scheduler.add(fresh[0], fresh[1:])

    def _refusal(self, event: Start, now_s: float) -> BatonError | None:
        if self._draining:
            return Draining("the worker is leaving")
        if event.deadline_s is not None and now_s >= event.deadline_s:
            return DeadlineExceeded("the deadline passed before the request reached a worker")
        if event.key in self._requests:
            return InvalidArgument("is in use on this stream", field="key")
        longest = len(event.prompt_token_ids) + max(map(len, event.output_token_ids), default=0)
        limit = self.scheduler.limits.max_model_len
        if not event.prompt_token_ids or longest > limit:
            return InvalidArgument(f"has {longest} tokens; 1 to {limit} fit", field="prompt")
        return None

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
        router, number = request.key
        stop_token_id = sample.token_ids[-1] if reason is FinishReason.STOP else 0
        self._outbox(router).ended_samples.append(
            SampleEnded(number, sample.sample_index, reason, stop_token_id)
        )
        self.scheduler.remove(sample)
        request.live.remove(sample)
        if not request.live:
            self._end(request, now_s, None)

    def _end(self, request: _Request, now_s: float, error: BatonError | None) -> None:
        for sample in request.live:
            self.scheduler.remove(sample)
        for sample in request.samples:
            del self._request_of[sample.handle]
        del self._requests[request.key]
        request.instants[instants.FINISHED] = now_s
        router, number = request.key
        lead = request.samples[0]
        usage = Usage(
            lead.num_prompt_tokens,
            min(lead.num_cached_tokens, lead.num_prompt_tokens),
            sum(sample.num_output_tokens for sample in request.samples),
        )
        num_preemptions = sum(sample.num_preemptions for sample in request.samples)
        self._outbox(router).finished.append(
            Finished(number, error, usage, request.instants, num_preemptions)
        )

    def _outbox(self, router: RouterId) -> Outbox:
        return self._outboxes.setdefault(router, Outbox())
