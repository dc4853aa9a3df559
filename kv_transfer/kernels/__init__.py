"""The checksum in C behind ctypes, which releases the GIL. Knows addresses and sizes only."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from baton import native


@functools.cache
def load() -> ChecksumKernels | None:
    """Built at the first call on a machine; None where that is impossible (logged)."""
    library = native.load(Path(__file__).parent)
    return None if library is None else ChecksumKernels(library)


class ChecksumKernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._checksum = library.baton_checksum
        self._checksum.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self._checksum.restype = ctypes.c_uint64
        self._copy_checksum = library.baton_copy_checksum
        self._copy_checksum.argtypes = [ctypes.c_void_p, *self._checksum.argtypes]
        self._copy_checksum.restype = ctypes.c_uint64

    def checksum(self, address: int, size_bytes: int, first_word: int) -> int:
        return int(self._checksum(address, size_bytes, first_word))

    def copy_checksum(self, source: int, target: int, size_bytes: int, first_word: int) -> int:
        """The two ranges do not overlap."""
        return int(self._copy_checksum(source, target, size_bytes, first_word))
