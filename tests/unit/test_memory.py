"""The memory that a process may still take, as the kernel's files say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kv_transfer.host import available_memory_bytes

MIB = 1 << 20
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


def machine(root: Path, cgroup: str, files: dict[str, object]) -> Path:
    """With 1 GiB free."""
    every: dict[str, object] = {
        "proc/meminfo": f"MemTotal: 4194304 kB\nMemAvailable: {1 << 20} kB\n",
        "proc/self/cgroup": cgroup,
        **files,
    }
    for name, text in every.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def version_1(group: str, limit: int, used: int) -> dict[str, object]:
    return {
        f"{V1}{group}/memory.limit_in_bytes": limit,
        f"{V1}{group}/memory.usage_in_bytes": used,
        f"{V1}{group}/memory.stat": f"inactive_file 0\ntotal_inactive_file {MIB}",
    }


def version_2(group: str, limit: object, used: int) -> dict[str, object]:
    return {
        f"{V2}{group}/memory.max": limit,
        f"{V2}{group}/memory.current": used,
        f"{V2}{group}/memory.stat": f"inactive_file {MIB}",
    }


NO_LIMIT_1 = 9223372036854771712


@pytest.mark.parametrize(
    ("cgroup", "files", "available"),
    [
        ("0::/", {}, 1024 * MIB),
        ("0::/a/b", version_2("/a", 100 * MIB, 60 * MIB), 41 * MIB),
        ("0::/a", version_2("/a", "max", 60 * MIB), 1024 * MIB),
        # A container whose own group is mounted as the topmost, but which is told the host's path.
        ("0::/docker/7", version_2("", 100 * MIB, 60 * MIB), 41 * MIB),
        ("9:cpu:/\n4:memory:/a", version_1("/a", 100 * MIB, 60 * MIB), 41 * MIB),
        ("4:memory:/docker/7\n0::/", version_1("", 100 * MIB, 60 * MIB), 41 * MIB),
        ("4:memory:/a", version_1("/a", NO_LIMIT_1, 60 * MIB), 1024 * MIB),
        # The limit of the group above binds, too.
        (
            "4:memory:/a/b",
            version_1("/a", 80 * MIB, 60 * MIB) | version_1("/a/b", 100 * MIB, 0),
            21 * MIB,
        ),
        ("4:memory:/a", version_1("/a", 50 * MIB, 60 * MIB), 0),
    ],
)
def test_every_limit_counts(
    tmp_path: Path, cgroup: str, files: dict[str, object], available: int
) -> None:
    assert available_memory_bytes(machine(tmp_path, cgroup, files)) == available


def test_of_this_machine() -> None:
    assert available_memory_bytes() > 0
