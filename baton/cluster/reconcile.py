"""What to do so that what runs becomes what is wanted. Pure: the facts and the time go in, actions come out.

    (nothing) --Start--> STARTING --ready--> RUNNING --Drain--> DRAINING --> ENDED --Start or Forget-->
                              \\_________________\\____________________\\____/

Level-triggered: called with the same facts again it says the same again, so a controller that restarts
needs no memory but what it can see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from baton.errors import BatonError


class Phase(Enum):
    STARTING = auto()
    RUNNING = auto()
    DRAINING = auto()
    ENDED = auto()


@dataclass(frozen=True, slots=True)
class Instance:
    """What is known of one worker or router. `since_s`: in this phase since. `silent_since_s`: when it was
    first asked in vain whether it lives, since it last said so; what nobody asked is not silent.
    `num_failures`: ends in a row that nobody asked for. `error`: what it is being killed for, or, until it
    serves again, what the last one of this name ended of."""

    name: str
    phase: Phase
    since_s: float
    silent_since_s: float | None = None
    num_failures: int = 0
    pid: int = 0
    error: BatonError | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """`silent_s`: what does not answer for this long hangs. `drain_s`: how long an
    orderly leave may take. `stable_s`: having run for this long, earlier failures are forgotten. The
    first restart is immediate, the next wait `backoff_s`, then twice as long each, up to
    `max_backoff_s`. `probe_s`: between two questions whether it lives."""

    start_s: float = 120.0
    silent_s: float = 3.0
    drain_s: float = 35.0
    stable_s: float = 1.0
    backoff_s: float = 0.25
    max_backoff_s: float = 5.0
    probe_s: float = 1.0

    def restart_after_s(self, num_failures: int) -> float:
        if num_failures <= 1:
            return 0.0
        doubled: float = self.backoff_s * 2 ** min(num_failures - 2, 30)
        return min(self.max_backoff_s, doubled)


@dataclass(frozen=True, slots=True)
class Start:
    name: str


@dataclass(frozen=True, slots=True)
class Drain:
    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Forget:
    name: str


Action = Start | Drain | Kill | Forget


def reconcile(
    wanted: Collection[str], known: Mapping[str, Instance], now_s: float, limits: Limits
) -> Iterator[Action]:
    """The actions due now, at most one for each name."""
    for name in wanted:
        if name not in known:
            yield Start(name)
    for instance in known.values():
        action = _due(instance, instance.name in wanted, now_s, limits)
        if action is not None:
            yield action


def _due(instance: Instance, wanted: bool, now_s: float, limits: Limits) -> Action | None:
    name, elapsed_s = instance.name, now_s - instance.since_s
    match instance.phase:
        case Phase.STARTING if not wanted:
            return Kill(name, "is wanted no more")
        case Phase.STARTING if elapsed_s > limits.start_s:
            return Kill(name, f"was not ready after {limits.start_s:g} s")
        case Phase.RUNNING if not wanted:
            return Drain(name)
        case Phase.RUNNING if _is_silent(instance, now_s, limits):
            return Kill(name, f"has not answered for {limits.silent_s:g} s")
        case Phase.DRAINING if elapsed_s > limits.drain_s:
            return Kill(name, f"did not leave within {limits.drain_s:g} s")
        case Phase.ENDED if not wanted:
            return Forget(name)
        case Phase.ENDED if elapsed_s >= limits.restart_after_s(instance.num_failures):
            return Start(name)
    return None


def _is_silent(instance: Instance, now_s: float, limits: Limits) -> bool:
    since_s = instance.silent_since_s
    return since_s is not None and now_s - since_s > limits.silent_s


def started(name: str, before: Instance | None, now_s: float) -> Instance:
    """`before`: what was known of the one of this name that ended."""
    if before is None:
        return Instance(name, Phase.STARTING, now_s)
    return replace(before, phase=Phase.STARTING, since_s=now_s)


def answered(instance: Instance, now_s: float) -> Instance:
    """It can serve; the first time, that makes it ready."""
    if instance.phase is Phase.STARTING:
        return replace(instance, phase=Phase.RUNNING, since_s=now_s, error=None)
    return replace(instance, silent_since_s=None)


def asked_in_vain(instance: Instance, now_s: float) -> Instance:
    if instance.phase is not Phase.RUNNING or instance.silent_since_s is not None:
        return instance
    return replace(instance, silent_since_s=now_s)


def draining(instance: Instance, now_s: float, error: BatonError | None = None) -> Instance:
    """It was told to leave, or for an `error` is being killed."""
    return replace(instance, phase=Phase.DRAINING, since_s=now_s, error=error)


def ended(instance: Instance, error: BatonError | None, now_s: float, limits: Limits) -> Instance:
    """`error` None: it left in order."""
    stable = instance.phase is Phase.RUNNING and now_s - instance.since_s >= limits.stable_s
    before = 0 if stable else instance.num_failures
    num_failures = 0 if error is None else before + 1
    return replace(
        instance,
        phase=Phase.ENDED,
        since_s=now_s,
        silent_since_s=None,
        num_failures=num_failures,
        pid=0,
        error=error,
    )
