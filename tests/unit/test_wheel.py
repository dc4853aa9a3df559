"""What a user gets who installs Baton: which names the wheel brings, and what lies beside the code."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--quiet"]
    result = subprocess.run(
        [*build, "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_installs_these_names_and_no_others(wheel_files: list[str]) -> None:
    names = {name.split("/")[0] for name in wheel_files if ".dist-info/" not in name}
    assert names == {"baton", "router", "prefill_worker", "decode_worker", "kv_transfer"}


def test_brings_every_module_and_the_sources_of_the_kernels(wheel_files: list[str]) -> None:
    packages = ("baton", "router", "prefill_worker", "decode_worker", "kv_transfer")
    expected = {
        str(path.relative_to(ROOT))
        for package in packages
        for pattern in ("*.py", "kernels/*.c", "kernels/*.h")
        for path in (ROOT / package).rglob(pattern)
    }
    assert expected <= set(wheel_files)
