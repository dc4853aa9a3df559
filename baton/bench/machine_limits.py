"""What a machine gives at this moment, measured beside whatever is compared with it.

Both with torch's present number of threads. It knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_NUM_BYTES = 256 << 20  # read for the bandwidth: far past every cache
_SIZE = 1024  # of the square matrices of the GEMM


class MachineLimits:
    """Rates in bytes or FLOPs per second, fp32."""

    def __init__(self) -> None:
        self._bytes = torch.ones(_NUM_BYTES // 4)
        self._a = torch.randn(_SIZE, _SIZE)

    def read_rate(self) -> float:
        """A vector times itself: one pass over memory, with little to compute."""
        return _NUM_BYTES / seconds(lambda: torch.dot(self._bytes, self._bytes))

    def gemm_rate(self) -> float:
        return 2 * _SIZE**3 / seconds(lambda: self._a @ self._a)


def seconds(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s
