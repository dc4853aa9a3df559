"""Compiles a package's own C sources for the machine it runs on, once, and loads the library.

The compiled file is cached per user (`XDG_CACHE_HOME` or `~/.cache`, in `baton/`) under a hash of the
sources, the compiler and the CPU, so that a folder on a shared disk serves unlike machines, and any
number of processes may build at once: each writes its own file and renames it into place.

Where nothing can be built (no compiler, an error, `BATON_KERNELS=off`) the reason is logged and the
caller gets None: kernels are a matter of speed, their callers know another way. Knows neither torch nor
what the kernels do.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SWITCH = "BATON_KERNELS"  # "off" disables every native library

# IEEE throughout (no -ffast-math), except that a * b + c may be fused and nothing reads errno or
# the floating-point exception flags.
FLAGS = (
    *("-std=gnu11", "-O3", "-shared", "-fPIC", "-fvisibility=default"),
    "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native",
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
BUILD_TIMEOUT_S = 120


@functools.cache
def load(folder: Path) -> ctypes.CDLL | None:
    """The library made of every `.c` file in `folder` (headers beside them), or None."""
    if os.environ.get(SWITCH, "").lower() == "off":
        logger.info("%s: native kernels are off by %s", folder, SWITCH)
        return None
    try:
        return ctypes.CDLL(str(_built(folder)))
    except (OSError, subprocess.SubprocessError, _NoCompilerError) as error:
        detail = getattr(error, "stderr", None) or ""
        logger.warning("%s: slower without native kernels: %s %s", folder, error, detail)
        return None


class _NoCompilerError(Exception):
    pass


def _compiler() -> list[str]:
    if named := os.environ.get("CC"):
        return shlex.split(named)
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise _NoCompilerError("found no C compiler (cc, gcc, clang); CC names one")


def _built(folder: Path) -> Path:
    compiler = _compiler()
    sources = sorted(folder.glob("*.c"))
    target = _cache_folder() / f"{folder.parent.name}-{_key(folder, compiler)}.so"
    if target.exists():
        return target
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        _run([*compiler, *FLAGS, "-o", str(made), *map(str, sources), "-lm"])
        made.replace(target)
    return target


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user that the machine does not know, as containers have
            base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return base / "baton"


def _key(folder: Path, compiler: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted((*folder.glob("*.c"), *folder.glob("*.h"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for part in (*compiler, _run([*compiler, "--version"]), *FLAGS, _cpu()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _run(command: Sequence[str]) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    ).stdout


def _cpu() -> str:
    """Model and instruction sets of the first CPU: what `native` means here."""
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    lines = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first, _, _ = cpuinfo.read_text().partition("\n\n")
        lines += [line for line in first.splitlines() if line.startswith(names)]
    return "\n".join(lines)
