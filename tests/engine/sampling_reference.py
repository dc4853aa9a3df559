"""What a draw must be, by definition: the whole vocabulary sorted and noised, in Python and numpy.

Shares nothing with the engine: the hash is Python integers, the rest float64.
"""

from __future__ import annotations

import hashlib
import math
import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

from baton.types import SamplingParams

Floats = NDArray[np.float64]
_MASK = 0xFFFFFFFF


def word(key: tuple[int, int], counter: int) -> int:
    """32 bits of a counter under a key, as an unsigned integer."""
    x = (counter * 0x9E3779B9 & _MASK) ^ (key[0] & _MASK)
    return _finalise(_finalise(x) + key[1] & _MASK)


def _finalise(x: int) -> int:
    x = (x ^ x >> 16) * 0x85EBCA6B & _MASK
    x = (x ^ x >> 13) * 0xC2B2AE35 & _MASK
    return x ^ x >> 16


@cache
def variates(seed: int, sample_index: int, output_index: int, vocab_size: int) -> Floats:
    """The Exp(1) variate of each token."""
    text = f"{seed} {sample_index} {output_index}".encode()
    digest = hashlib.blake2b(text, digest_size=8, person=b"baton-noise").digest()
    key = struct.unpack("<II", digest)
    drawn = []
    for token in range(vocab_size):
        group, place = divmod(token, 64)
        minimum = _exponential(word(key, (1 << 30) + group)) / 64
        is_leader = word(key, (1 << 31) + group) % 64 == place
        drawn.append(minimum + (0.0 if is_leader else _exponential(word(key, token))))
    return np.array(drawn)


def _exponential(bits: int) -> float:
    return -math.log(((bits + (1 << 31)) % (1 << 32) + 0.5) / (1 << 32))


def survivors(logits: Floats, params: SamplingParams) -> NDArray[np.bool_]:
    """Which tokens top_k, top_p and min_p leave of the adjusted logits [vocab_size]."""
    scaled = (logits - logits.max()) / params.temperature
    kept = np.ones(len(logits), bool)
    if 0 < params.top_k < len(logits):
        kept = scaled >= np.sort(scaled)[-params.top_k]
    if params.top_p < 1.0:
        masses = np.where(kept, np.exp(scaled), 0.0)
        order = np.argsort(-scaled, kind="stable")
        running = np.concatenate(([0.0], np.cumsum(masses[order])))
        first_equal = np.searchsorted(-scaled[order], -scaled, side="left")
        kept &= (running[first_equal] < params.top_p * masses.sum()) | (scaled == 0.0)
    if params.min_p > 0.0:
        kept &= scaled >= math.log(params.min_p)
    return kept


def draw(logits: Floats, params: SamplingParams, noise: Floats) -> int:
    """The token drawn from adjusted logits [vocab_size]."""
    if params.temperature == 0.0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / params.temperature
    scores = np.where(survivors(logits, params), scaled - np.log(noise), -np.inf)
    return int(scores.argmax())
