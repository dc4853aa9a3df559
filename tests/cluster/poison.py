"""Workers that a request kills: the process whose step ends a prompt with POISON is gone, as by a kernel's
segmentation fault. The fault is in the tests' own processes; a worker knows nothing of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

import baton.cluster.process
from baton.cluster.process import Popen
from baton.engine.runner import ModelRunner
from baton.scheduling.step_plan import StepOutput, StepPlan
from tests.warm import fork, run_baton

POISON = (299, 298, 299)  # tokens that no other prompt has


@contextmanager
def poisoned_workers() -> Iterator[None]:
    """Within, workers that are started are such."""
    spawn_other = baton.cluster.process.spawn

    def spawn(words: Sequence[str], environment: Mapping[str, str], output: int | None) -> Popen:
        if words[0] == "worker" and output is not None:
            return fork(_run, words, output)
        return spawn_other(words, environment, output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baton.cluster.process, "spawn", spawn)
        yield


def _run(words: list[str], environment: dict[str, str], log: str) -> None:
    run = ModelRunner.run

    def run_or_die(
        self: ModelRunner, plan: StepPlan, on_layer: Callable[[int], None] | None = None
    ) -> StepOutput:
        if any(tuple(piece.token_ids[-len(POISON) :]) == POISON for piece in plan.slices):
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, plan, on_layer)

    ModelRunner.run = run_or_die  # type: ignore[method-assign]
    run_baton(words, environment, log)
