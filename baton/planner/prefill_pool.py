"""A prefill worker in simulated time: its scheduler and its blocks are the real ones, its engine is a
profile. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.planner.events import Events
from baton.planner.profile import EngineProfile
from baton.planner.requests import SimulatedRequest
from baton.scheduling.accounts import pool_load
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.sample import Sample
from baton.scheduling.step_plan import StepOutput, StepPlan
from baton.types import BlockId, PoolId, PoolLoad, SamplingParams
from prefill_worker.scheduler import PrefillLimits, PrefillScheduler

Told = Callable[[SimulatedRequest], None]
Changes = Callable[[PoolId, Sequence[tuple[bool, BlockId]]], None]

_PARAMS = SamplingParams(max_tokens=1)
_WARM_UP_TOKENS = (128, 16)  # as `baton.engine.warm_up`
INCARNATION = 1


class PrefillPool:
    """`on_computed` hears of every prompt, `on_change` what the pool has published and forgotten."""

    def __init__(
        self,
        pool_id: PoolId,
        blocks: BlockManager,
        limits: PrefillLimits,
        profile: EngineProfile,
        events: Events,
        on_computed: Told,
        on_change: Changes,
    ) -> None:
        self.id = pool_id
        self.scheduler = warm_scheduler(blocks, limits, profile)
        self.busy_s = 0.0
        self._profile = profile
        self._events = events
        self._on_computed = on_computed
        self._on_change = on_change
        self._request_of: dict[int, SimulatedRequest] = {}
        self._is_stepping = False

    def add(self, request: SimulatedRequest) -> None:
        """Queues a prompt. Steps begin once everything of this instant has come."""
        sample = prompt(request, self._events.now_s)
        self._request_of[sample.handle] = request
        self.scheduler.add(sample, ())
        self._events.at(self._events.now_s, self.wake)

    def wake(self) -> None:
        if self._is_stepping:
            return
        now_s = self._events.now_s
        plan = self.scheduler.schedule(now_s)
        if plan is None:
            return
        self._is_stepping = True
        for sample in self.scheduler.planned:
            request = self._request_of[sample.handle]
            if request.started_s is None:
                request.started_s = now_s
                request.num_cached_tokens = sample.num_cached_tokens
        took_s = self._profile.prefill.step_s(plan.num_tokens)
        self.busy_s += took_s
        self._events.at(now_s + took_s, lambda: self._stepped(plan, took_s))

    def _stepped(self, plan: StepPlan, took_s: float) -> None:
        self._is_stepping = False
        step = self.scheduler.update(plan, StepOutput((), took_s))
        done = [self._request_of.pop(sample.handle) for sample, _ in step.drawn]
        for sample, _ in step.drawn:
            self.scheduler.release(sample)
        if changes := self.scheduler.blocks.take_changes():
            self._on_change(self.id, changes)
        for request in done:
            request.prefilled_s = self._events.now_s
            self._on_computed(request)
        self._events.at(self._events.now_s, self.wake)

    def load(self) -> PoolLoad:
        """As its worker reports it."""
        return pool_load(self.id, INCARNATION, self.scheduler)


def warm_scheduler(
    blocks: BlockManager, limits: PrefillLimits, profile: EngineProfile
) -> PrefillScheduler:
    """As a worker has it when it registers: it has measured two steps."""
    scheduler = PrefillScheduler(blocks, limits)
    for num_tokens in _WARM_UP_TOKENS:
        scheduler.step_time.observe(num_tokens, 0, profile.prefill.step_s(num_tokens))
    return scheduler


def prompt(request: SimulatedRequest, now_s: float) -> Sample:
    """A prompt whose tokens are nobody's business but whose blocks have their ids."""
    arrival = request.arrival
    return Sample(
        handle=request.index + 1,
        sample_index=0,
        params=_PARAMS,
        token_ids=[0] * arrival.num_prompt_tokens,
        num_prompt_tokens=arrival.num_prompt_tokens,
        eos_token_ids=frozenset(),
        salt=b"",
        arrival_s=now_s,
        block_ids=list(arrival.block_ids),
    )
