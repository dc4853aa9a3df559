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
        self._checksum = library.baton_checksum
        self._checksum.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self._checksum.restype = ctypes.c_uint64
        self._copy_checksum = library.baton_copy_checksum
        self._copy_checksum.argtypes = [ctypes.c_void_p, *self._checksum.argtypes]
        self._copy_checksum.restype = ctypes.c_uint64
        table = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
        self._copy_ranges = library.baton_copy_ranges
        self._copy_ranges.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *table)
        self._copy_ranges.restype = None
        self._sum_ranges = library.baton_sum_ranges
        self._sum_ranges.argtypes = (ctypes.c_void_p, *table)
        self._sum_ranges.restype = None

    def checksum(self, address: int, size_bytes: int, first_word: int) -> int:
        return int(self._checksum(address, size_bytes, first_word))

    def copy_checksum(self, source: int, target: int, size_bytes: int, first_word: int) -> int:
        """The two ranges do not overlap."""
        return int(self._copy_checksum(source, target, size_bytes, first_word))

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
