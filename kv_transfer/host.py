"""What a process can tell of the machine it runs on: which one it is, and how much memory is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def host_id() -> str:
    """Equal for two processes exactly where they can see each other by pid: one boot of one kernel and
    one pid namespace. Other containers of the same machine have another."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def available_memory_bytes(root: Path = Path("/")) -> int:
    """What can be allocated without swapping or being killed: the machine's free memory, within the
    limits of this process's control groups, of version 1 or 2. `root`: of the file system."""
    machine = _fields(root / "proc/meminfo")["MemAvailable:"] * 1024
    return max(0, min([machine, *_left_in_groups(root)]))


@dataclass(frozen=True, slots=True)
class _Files:
    """How a version of control groups calls them; `reclaimable`: a line of memory.stat."""

    limit: str
    used: str
    reclaimable: str


_VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def _left_in_groups(root: Path) -> Iterator[int]:
    """A group's limit binds all groups below it. What a container sees as the topmost is its own."""
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, files = root / "sys/fs/cgroup", _VERSION_2
        elif "memory" in controllers.split(","):
            top, files = root / "sys/fs/cgroup/memory", _VERSION_1
        else:
            continue
        own = top / path.lstrip("/")
        for group in (own, *own.parents):
            if (left := _left(group, files)) is not None:
                yield left
            if group == top:
                break


def _left(group: Path, files: _Files) -> int | None:
    """None where the group cannot be seen or has no limit; in version 1 that is one beyond any machine."""
    limit = group / files.limit
    if not limit.exists() or (text := limit.read_text().strip()) == "max":
        return None
    used = int((group / files.used).read_text())
    return int(text) - used + _fields(group / "memory.stat").get(files.reclaimable, 0)


def _fields(path: Path) -> dict[str, int]:
    """Lines of the form `name number ...`."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
