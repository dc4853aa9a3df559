"""What a process can tell of the machine it runs on: which one it is, and how much memory is left."""

from __future__ import annotations

from pathlib import Path


def host_id() -> str:
    """Equal for two processes exactly where they can see each other by pid: one boot of one kernel and
    one pid namespace. Other containers of the same machine have another."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def available_memory_bytes() -> int:
    """What can be allocated without swapping or being killed: the machine's free memory, within the
    limit of the control group (version 2) where there is one."""
    available = _fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024
    group = Path("/sys/fs/cgroup")
    limit = group / "memory.max"
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        used = int((group / "memory.current").read_text())
        reclaimable = _fields(group / "memory.stat").get("inactive_file", 0)
        available = min(available, int(text) - used + reclaimable)
    return max(0, available)


def _fields(path: Path) -> dict[str, int]:
    """Lines of the form `name number ...`."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
