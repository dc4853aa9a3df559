"""A decode worker in simulated time. Pure.

Steps of a batch that does not change all take equally long, so they are counted, not run: something happens
when a request joins or ends. A prompt to be computed here runs in steps of its own with the decoding
requests beside it, by the scheduler and the limits of a prefill worker with smaller chunks. A request whose
prompt comes from elsewhere takes the blocks for all it will hold at once, or waits for them; nothing is
preempted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from baton.planner.events import Events
from baton.planner.prefill_pool import INCARNATION, Changes, Told, prompt, warm_scheduler
from baton.planner.profile import EngineProfile
from baton.planner.requests import SimulatedRequest
from baton.scheduling.accounts import pool_load
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.step_plan import StepOutput, StepPlan
from baton.types import PoolId, PoolLoad
from prefill_worker.scheduler import PrefillLimits


@dataclass(frozen=True, slots=True)
class Heard:
    """Who hears of what a decode pool does: `reserved` of blocks taken, `computed` of a prompt computed
    here, `finished` of a request, `changed` what is published and forgotten, and `gaps` of inter-token
    latencies, as (seconds, how many)."""

    reserved: Told
    computed: Told
    finished: Told
    changed: Changes
    gaps: Callable[[float, int], None]


class DecodePool:
    def __init__(
        self,
        pool_id: PoolId,
        blocks: BlockManager,
        limits: PrefillLimits,
        profile: EngineProfile,
        events: Events,
        heard: Heard,
    ) -> None:
        self.id = pool_id
        self.blocks = blocks
        self.local = warm_scheduler(blocks, limits, profile)
        self._profile = profile
        self._events = events
        self._heard = heard
        self._waiting: deque[SimulatedRequest] = deque()  # for blocks
        self._prompts: dict[int, SimulatedRequest] = {}  # being computed here, by handle
        self._joining: list[SimulatedRequest] = []
        self._newcomers: list[SimulatedRequest] = []  # without their first token
        self._ends: list[
            tuple[int, int, SimulatedRequest]
        ] = []  # a heap by the step that ends each
        self._num_steps = 0
        self._num_context_tokens = 0
        self._since_s = 0.0  # when the steps in progress began
        self._step_s = 0.0
        self._version = 0  # of the plan; what was planned before it changed does not happen

    @property
    def num_streams(self) -> int:
        return len(self._ends)

    # A request's way through

    def reserve(self, request: SimulatedRequest) -> None:
        """Takes its blocks now, or when others give theirs back."""
        self._waiting.append(request)
        self._reserve_waiting()

    def compute(self, request: SimulatedRequest) -> None:
        """Queues its prompt here; to be called instead of `reserve`."""
        sample = request.sample = prompt(request, self._events.now_s)
        self._prompts[sample.handle] = request
        self.local.add(sample, ())
        self._change()

    def join(self, request: SimulatedRequest) -> None:
        """Its KV is here: it decodes from the next step on."""
        if request.decode_blocks is not None:
            first, ids = request.num_decode_hits, request.arrival.block_ids
            for block, block_id in zip(request.decode_blocks[first:], ids[first:], strict=False):
                self.blocks.publish(block, block_id)
            self._tell_changes()
        self._joining.append(request)
        self._change()

    def load(self) -> PoolLoad:
        """As its worker reports it."""
        return replace(pool_load(self.id, INCARNATION, self.local), decode_step_s=self._step_s)

    def _reserve_waiting(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            arrival, block_size = request.arrival, self.blocks.block_size
            held = self.blocks.acquire(arrival.block_ids)
            num_tokens = arrival.num_prompt_tokens + arrival.num_output_tokens
            taken = self.blocks.allocate(-(-num_tokens // block_size) - len(held))
            if taken is None:
                self.blocks.release(held)
                return
            request.decode_blocks = held + taken
            request.num_decode_hits = len(held)
            self._waiting.popleft()
            self._heard.reserved(request)

    # Steps

    def _change(self) -> None:
        """The batch changes at the next boundary between two steps."""
        self._version += 1
        version, now_s = self._version, self._events.now_s
        boundary_s = now_s
        if self._step_s and self._since_s < now_s:
            num_steps = math.ceil((now_s - self._since_s) / self._step_s - 1e-9)
            boundary_s = self._since_s + num_steps * self._step_s
        boundary_s = max(boundary_s, self._since_s)
        self._events.at(boundary_s, lambda: self._replan(version))

    def _replan(self, version: int) -> None:
        if version != self._version:
            return
        now_s = self._events.now_s
        if self._step_s and now_s > self._since_s:
            self._pass_steps(round((now_s - self._since_s) / self._step_s))
        self._since_s = now_s
        self._end_requests()
        for request in self._joining:
            end = self._num_steps + request.arrival.num_output_tokens
            heapq.heappush(self._ends, (end, request.index, request))
            self._num_context_tokens += request.arrival.num_prompt_tokens
        self._newcomers += self._joining
        self._joining = []
        self._plan_steps()

    def _plan_steps(self) -> None:
        plan = self.local.schedule(self._events.now_s) if self._prompts else None
        if plan is not None:
            self._run_mixed_step(plan)
            return
        if not self._ends:
            self._step_s = 0.0
            return
        self._step_s = self._decode_step_s()
        version = self._version
        # The first tokens are told after the first step, the rest when somebody is done.
        num_steps = 1 if self._newcomers else max(1, self._ends[0][0] - self._num_steps)
        self._events.at(self._since_s + num_steps * self._step_s, lambda: self._replan(version))

    def _run_mixed_step(self, plan: StepPlan) -> None:
        """One step with a chunk of a prompt, and one token of everybody who decodes."""
        self._version += 1
        version, now_s = self._version, self._events.now_s
        for sample in self.local.planned:
            request = self._prompts[sample.handle]
            if request.started_s is None:
                request.started_s = now_s
                request.num_cached_tokens = sample.num_cached_tokens
        prefill_s = self._profile.prefill.step_s(plan.num_tokens)
        self._step_s = prefill_s + (self._decode_step_s() if self._ends else 0.0)
        self._events.at(
            now_s + self._step_s, lambda: self._end_mixed_step(plan, prefill_s, version)
        )

    def _end_mixed_step(self, plan: StepPlan, prefill_s: float, version: int) -> None:
        step = self.local.update(plan, StepOutput((), prefill_s))
        self._tell_changes()
        for sample, _ in step.drawn:
            request = self._prompts.pop(sample.handle)
            request.prefilled_s = self._events.now_s
            self._heard.computed(request)
            self._joining.append(request)
        if version == self._version:
            self._replan(version)

    def _decode_step_s(self) -> float:
        counts = self.blocks.counts()
        used = counts.held / counts.total
        return self._profile.decode.step_s(len(self._ends), self._num_context_tokens, used)

    def _pass_steps(self, num_steps: int) -> None:
        if not num_steps or not self._ends:
            return
        self._num_steps += num_steps
        num_waited = len(self._ends) - len(self._newcomers)
        self._heard.gaps(self._step_s, num_waited * num_steps)
        self._heard.gaps(self._step_s, len(self._newcomers) * (num_steps - 1))
        for request in self._newcomers:
            request.first_token_s = self._since_s + self._step_s
        self._newcomers = []

    def _end_requests(self) -> None:
        while self._ends and self._ends[0][0] <= self._num_steps:
            request = heapq.heappop(self._ends)[2]
            request.finished_s = self._events.now_s
            self._num_context_tokens -= request.arrival.num_prompt_tokens
            if request.decode_blocks is not None:
                self.blocks.release(request.decode_blocks)
            elif request.sample is not None:
                self.local.release(request.sample)
                request.sample = None
            self._tell_changes()
            self._heard.finished(request)
        self._reserve_waiting()

    def _tell_changes(self) -> None:
        if changes := self.blocks.take_changes():
            self._heard.changed(self.id, changes)
