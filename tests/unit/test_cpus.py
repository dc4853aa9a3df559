"""Workers compute on the CPUs that they have, whatever their node is said to have."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.worker.cpus import quota, spread, usable_cpus


@pytest.mark.parametrize(
    ("cores", "num_told", "allowed", "expected"),
    [
        ((0,), 2, (4, 6), [4]),
        ((1,), 2, (4, 6), [6]),
        (
            range(32),
            64,
            (4, 6),
            [4],
        ),  # `ray start --num-cpus=64` on two cores: as far apart as can be
        (range(32, 64), 64, (4, 6), [6]),
        ((0, 1), 2, range(64), []),  # two of 64, and not the two that others take
        ((), 2, (4, 6), []),
    ],
)
def test_a_slots_cores(cores: range, num_told: int, allowed: range, expected: list[int]) -> None:
    assert spread(cores, num_told, allowed) == expected


def write(groups: Path, **files: str) -> None:
    for name, text in files.items():
        path = groups / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def of(membership: str, groups: Path) -> int:
    file = groups / "membership"
    file.write_text(membership + "\n")
    return quota(file, groups)


def test_quota_of_version_2_is_the_least_of_all_groups_around(tmp_path: Path) -> None:
    write(tmp_path, a__b__cpu_max="max 100000", a__cpu_max="250000 100000", cpu_max="max 100000")
    assert of("0::/a/b", tmp_path) == 3
    write(tmp_path, a__b__cpu_max="5000 100000")
    assert of("0::/a/b", tmp_path) == 1


def test_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, **{"cpu,cpuacct__x__cpu_cfs_quota_us": "400000"})
    write(tmp_path, **{"cpu,cpuacct__x__cpu_cfs_period_us": "100000"})
    assert of("4:cpu,cpuacct:/x\n3:memory:/x", tmp_path) == 4


def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    write(tmp_path, cpu__cpu_cfs_quota_us="200000", cpu__cpu_cfs_period_us="100000")
    assert of("4:cpu,cpuacct:/docker/17", tmp_path) == 2


def test_no_quota(tmp_path: Path) -> None:
    write(tmp_path, cpu__cpu_cfs_quota_us="-1", cpu__cpu_cfs_period_us="100000")
    assert of("4:cpu:/", tmp_path) > 1000
    assert quota(tmp_path / "none", tmp_path) > 1000
    assert usable_cpus() >= 1
