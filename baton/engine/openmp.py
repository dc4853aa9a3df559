"""torch's own OpenMP runtime, which the engine's kernels share (kernels/parallel.c says why)."""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

_SOFT_PAUSE = 1  # omp_pause_soft: ends threads, keeps settings


def release_team() -> None:
    """Ends the threads that OpenMP keeps for the calling thread; its next parallel operation starts them
    again. For a thread that has computed what it had to, while another one goes on.

    Every thread that ever did something in parallel has such a team. Where all teams have more threads
    than there are cores, the runtime (libgomp) lets none of them wait actively, and every parallel
    operation begins with waking its threads: at two threads, steps of a small model took 32 ms instead
    of 14 after another thread had computed. An OpenMP older than 5.0 keeps its teams.
    """
    pause = entry("omp_pause_resource_all")
    if pause is not None:
        ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(pause)(_SOFT_PAUSE)


@functools.cache
def entry(name: str) -> int | None:
    """The address of a function of the runtime; None where it is out of reach (logged)."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = getattr(ctypes.CDLL(str(library)), name)
    except (OSError, AttributeError) as error:
        _log.warning("torch's OpenMP has no %s: %s", name, error)
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
