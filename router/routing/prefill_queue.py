"""The prompts that this router has given one pool to compute, and how far they are by its prediction. Pure.

The pool serves the shortest rest first, less what was waited (`baton.prefill_cost.AGEING`), in steps that
end what they began; this follows it by the predicted cost of each prompt, until the pool says that one is
computed. So a prompt that comes now has two costs: the time until it is computed, and the delay of those that
it passes.

What the other routers have here is known as an amount only: it is ahead of everybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from baton.prefill_cost import AGEING

_LEAST_LEFT = 0.05  # of a prompt's work: what is not heard of as computed is not computed


@dataclass(slots=True, eq=False)
class Queued:
    """One prompt: `num_tokens` to be computed in `work_s`, of which `left_s` are predicted to be left.
    `behind_s`: by which it stands behind those that came before it, all else being equal."""

    num_tokens: int
    work_s: float
    left_s: float
    behind_s: float


class Quote(NamedTuple):
    """What a prompt would meet: `wait_s` until its own work begins or is gone on with, and `harm_s`, the
    delay of those it passes, each weighed by how long it has to wait anyway."""

    wait_s: float
    harm_s: float


@dataclass(slots=True)
class PrefillQueue:
    """`now_s` never goes back. `step_s`: about how long a step of the pool takes, which is how long the
    shortest prompt may have to wait for a longer one."""

    step_s: float = 0.0
    num_tokens: int = 0
    _prompts: list[Queued] = field(
        default_factory=list
    )  # in the order of their turns, but for the first
    _step_left_s: float = 0.0  # of the first one's step in progress
    _as_of_s: float = 0.0

    def __len__(self) -> int:
        return len(self._prompts)

    def ends_s(self) -> float:
        """When it is predicted to be empty, if nothing more comes; 0 where it is."""
        if not self._prompts:
            return 0.0
        return self._as_of_s + sum(prompt.left_s for prompt in self._prompts)

    def add(self, num_tokens: int, work_s: float, now_s: float) -> Queued:
        self._advance(now_s)
        queued = Queued(num_tokens, work_s, work_s, AGEING * now_s)
        self._prompts.append(queued)
        self.num_tokens += num_tokens
        self._order()
        return queued

    def remove(self, queued: Queued, now_s: float) -> None:
        """It is computed, or will not be."""
        self._advance(now_s)
        if queued is self._prompts[0]:
            self._step_left_s = 0.0
        self._prompts.remove(queued)
        self.num_tokens -= queued.num_tokens
        self._order()

    def quote(self, work_s: float, now_s: float, long_s: float) -> Quote:
        """For a prompt of `work_s`. Delaying a prompt that has long to go costs more: 1, and the square of
        what it has left over `long_s`."""
        if not self._prompts:
            return Quote(0.0, 0.0)
        self._advance(now_s)
        wait_s, weight = self._step_left_s, 0.0
        turn_s = work_s + AGEING * now_s
        for index, prompt in enumerate(self._prompts):
            left_s = prompt.left_s if index else prompt.left_s - self._step_left_s
            if left_s <= 0.0:
                continue
            if left_s + prompt.behind_s <= turn_s:
                wait_s += left_s
            else:
                weight += 1.0 + (left_s / long_s) ** 2
        return Quote(wait_s, work_s * weight)

    def _order(self) -> None:
        """The first keeps its place while its step lasts."""
        if self._step_left_s > 0.0:
            self._prompts[1:] = sorted(self._prompts[1:], key=_turn_s)
        else:
            self._prompts.sort(key=_turn_s)
            self._begin_step()

    def _begin_step(self) -> None:
        if self._prompts:
            first = self._prompts[0]
            floor_s = _LEAST_LEFT * first.work_s
            rest_s = max(0.0, first.left_s - floor_s)
            self._step_left_s = min(rest_s, self.step_s or rest_s)

    def _advance(self, now_s: float) -> None:
        """Lets the pool work until `now_s`."""
        elapsed_s, self._as_of_s = now_s - self._as_of_s, now_s
        while elapsed_s > 0.0 and self._prompts and self._step_left_s > 0.0:
            done_s = min(elapsed_s, self._step_left_s)
            self._prompts[0].left_s -= done_s
            self._step_left_s -= done_s
            elapsed_s -= done_s
            if self._step_left_s <= 1e-9:
                self._step_left_s = 0.0
                self._next_step()

    def _next_step(self) -> None:
        """Of the first in turn that is not predicted to be done."""
        undone = [p for p in self._prompts if p.left_s > _LEAST_LEFT * p.work_s + 1e-9]
        if undone:
            first = min(undone, key=_turn_s)
            self._prompts.remove(first)
            self._prompts.insert(0, first)
            self._begin_step()


def _turn_s(prompt: Queued) -> float:
    return prompt.left_s + prompt.behind_s
