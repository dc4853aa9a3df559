"""Copies and checksums in C behind ctypes, which releases the GIL. Knows addresses and sizes only."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baton import native

# [num_ranges, 4]: offset in the source, offset in the target, size in bytes, number of the first word
Ranges = NDArray[np.uint64]


@functools.cache
def load() -> TransferKernels | None:
    """Built at the first call on a machine; None where that is impossible (logged)."""
    library = native.load(Path(__file__).parent)
    return None if library is None else TransferKernels(library)


class TransferKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        table = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
        self._copy_ranges = library.baton_copy_ranges
        self._copy_ranges.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *table)
        self._copy_ranges.restype = None
        self._sum_ranges = library.baton_sum_ranges
        self._sum_ranges.argtypes = (ctypes.c_void_p, *table)
        self._sum_ranges.restype = None

    def copy_ranges(
        self, source: int, target: int, ranges: Ranges, *, checksums: bool
    ) -> NDArray[np.uint64] | None:
        """Copies between two memories that do not overlap; the checksum of each range where wanted."""
        table = np.ascontiguousarray(ranges)
        sums = np.empty(len(table), np.uint64) if checksums else None
        sums_address = sums.ctypes.data if sums is not None else None
        self._copy_ranges(source, target, table.ctypes.data, len(table), sums_address)
        return sums

    def sum_ranges(self, source: int, ranges: Ranges) -> NDArray[np.uint64]:
        """The checksum of each range of one memory; the second column is not looked at."""
        sums = np.empty(len(ranges), np.uint64)
        table = np.ascontiguousarray(ranges)
        self._sum_ranges(source, table.ctypes.data, len(table), sums.ctypes.data)
        return sums
