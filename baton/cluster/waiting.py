"""What a cluster still waits for before it is what is wanted, in words for whoever started it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from baton.cluster.reconcile import Instance, Phase
from baton.state.base import Member

_FIRST_S, _LONGEST_S = 2.0, 30.0
_NUM_TOLD = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """`members`: by router's address, the workers that it knows; None where it does not answer."""

    known: Mapping[str, Instance]
    members: Mapping[str, Sequence[Member] | None]


def missing(names: Collection[str], seen: Seen) -> Iterator[str]:
    """Nothing where exactly `names` run, and every router knows every worker among them."""
    for name in names:
        instance = seen.known.get(name)
        if instance is None or instance.phase is not Phase.RUNNING:
            yield f"{name} {_state(instance)}"
    for name in seen.known.keys() - set(names):
        yield f"{name} to leave"
    for router, members in seen.members.items():
        yield from _missing_at(router, members, seen.known)


def _state(instance: Instance | None) -> str:
    if instance is None:
        return "to be started"
    match instance.phase:
        case Phase.STARTING if not instance.pid:
            return "to get a process"
        case Phase.STARTING:
            return f"(process {instance.pid}) to say that it serves"
        case Phase.DRAINING:
            return "to leave"
        case _:
            return f"to be started again ({instance.error or 'it left'})"


def _missing_at(
    router: str, members: Sequence[Member] | None, known: Mapping[str, Instance]
) -> Iterator[str]:
    """`known`, by what one router says; nothing of workers that do not run yet."""
    if members is None:
        yield f"the router at {router} to answer"
        return
    there = {member.info.worker_id: member for member in members}
    workers = {name: each for name, each in known.items() if not name.startswith("router-")}
    for name, instance in workers.items():
        if instance.phase is not Phase.RUNNING:
            continue
        if name not in there or there[name].info.pid != instance.pid:
            yield f"{name} to register with the router at {router}"
        elif not there[name].connected:
            yield f"the router at {router} to connect to {name}"
    for name in there.keys() - workers.keys():
        yield f"the router at {router} to forget {name}"


@dataclass(slots=True)
class Teller:
    """When what is waited for is told: not at first, then at growing intervals, and sooner where it has
    changed. Time begins with `since_s`."""

    since_s: float
    _told: Sequence[str] = ()
    _interval_s: float = 2 * _FIRST_S

    def line(self, waits_for: Sequence[str], now_s: float) -> str | None:
        changed = list(waits_for) != list(self._told)
        if now_s - self.since_s < (_FIRST_S if changed else self._interval_s):
            return None
        self.since_s = now_s
        self._interval_s = 2 * _FIRST_S if changed else min(_LONGEST_S, 2 * self._interval_s)
        self._told = waits_for
        return f"waiting for {summed_up(waits_for)}"


def summed_up(waits_for: Sequence[str]) -> str:
    shown = "; ".join(waits_for[:_NUM_TOLD])
    left = len(waits_for) - _NUM_TOLD
    return f"{shown}; and {left} more" if left > 0 else shown
