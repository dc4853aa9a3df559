"""The hand-off's checksum as `kv_transfer.checksum` defines it, word by word: independent of every way by
which Baton computes it."""

from __future__ import annotations

from kv_transfer.checksum import MODULUS, WORD_BYTES


def definition(data: bytes, first_word: int = 0) -> int:
    """Of whole words."""
    total = 0
    for begin in range(0, len(data), WORD_BYTES):
        word = int.from_bytes(data[begin : begin + WORD_BYTES], "little")
        total += (2 * (first_word + begin // WORD_BYTES) + 1) * (word ^ (word >> 32))
    return total % MODULUS
