"""The engine of a prefill worker: runs a step and lets each layer's complete blocks leave while the next
layer is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from baton.scheduling.step_plan import StepOutput, StepPlan
from prefill_worker.push import Pusher
from prefill_worker.state_machine import PrefillRequests


class LayeredRunner(Protocol):
    """`on_layer` is called when all KV of a layer is in its blocks."""

    def run(self, plan: StepPlan, on_layer: Callable[[int], None] | None = None) -> StepOutput: ...


class PushingRunner:
    def __init__(self, runner: LayeredRunner, role: PrefillRequests, pusher: Pusher) -> None:
        self._runner = runner
        self._role = role
        self._pusher = pusher

    def run(self, plan: StepPlan) -> StepOutput:
        self._pusher.begin_step(self._role.step_writes)
        return self._runner.run(plan, on_layer=self._pusher.layer_written)
