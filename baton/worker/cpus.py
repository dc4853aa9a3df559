"""Which CPUs this process has, and how many: by its affinity, and by the quota of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """How many can compute at a time, at least 1."""
    return min(len(os.sched_getaffinity(0)), quota(Path("/proc/self/cgroup"), _GROUPS))


def of_slot(cores: Sequence[int], num_told: int) -> list[int]:
    """The CPUs that a slot's `cores` stand for, where a node is said to have `num_told`. Where that is
    more than this process may use, they are spread over those there are. Where it is fewer, it says how
    many are to be used and not which: none are chosen, as two clusters would choose the same."""
    allowed = sorted(os.sched_getaffinity(0))
    return spread(cores, num_told, allowed)


def spread(cores: Sequence[int], num_told: int, allowed: Sequence[int]) -> list[int]:
    """`of_slot`, where the process may use `allowed`."""
    if num_told < len(allowed):
        return []
    return sorted({allowed[core * len(allowed) // num_told] for core in cores})


def quota(membership: Path, groups: Path) -> int:
    """CPUs that the control groups of `membership` (as in /proc/self/cgroup) leave, of both versions; many
    where they bound nothing."""
    found = [1 << 20]
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += _bounds(groups, path, _of_version_2)
        elif "cpu" in controllers.split(","):
            for mount in ("cpu", controllers):
                found += _bounds(groups / mount, path, _of_version_1)
    return min(found)


def _bounds(mount: Path, path: str, read: Callable[[Path], tuple[int, int]]) -> Iterator[int]:
    """Of the group at `path` and of those around it; in a container the path may be one of the machine's,
    which is not to be seen there, and the mount is the container's own group."""
    group = mount / path.lstrip("/")
    for each in (group, *group.parents):
        if each.is_relative_to(mount):
            try:
                limit, period = read(each)
            except OSError:
                continue  # the group bounds no CPU, or is not there
            if limit > 0 and period > 0:
                yield max(1, math.ceil(limit / period))


def _of_version_2(group: Path) -> tuple[int, int]:
    limit, period = (group / "cpu.max").read_text().split()
    return (0 if limit == "max" else int(limit)), int(period)


def _of_version_1(group: Path) -> tuple[int, int]:
    limit, period = (
        int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
    )
    return limit, period
