"""The checksum of a hand-off, over the bytes of KV wherever they lie. One definition:

    sum over i of (2 * (first_word + i) + 1) * u[i]  modulo 2^64,   u[i] = w[i] xor (w[i] >> 32)

where w are the bytes as little-endian 64-bit words, the last one filled up with zeros.

- u is a bijection of w and weights are odd: any change within one word is detected. Weights differ:
  so are words or blocks that change places (folding the upper half down keeps this true of words that
  differ only in their top bits, which an even difference of weights would push out).
- It is linear in ranges: the checksum of a whole is the sum modulo 2^64 of those of its parts, each
  with `first_word` the number of words before it. So layers may be summed as they are pushed.
- It guards against accidents, not against an attacker.

CPU tensors go through C at memory speed where it can be built (kernels/), all others through integer
tensor operations, which give the same on CUDA.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from baton.errors import Internal
from kv_transfer import kernels

MODULUS = 1 << 64
WORD_BYTES = 8
_CHUNK_WORDS = 1 << 20  # bounds the temporary tensors of the tensor operations

assert sys.byteorder == "little", "KV moves between little-endian machines only"


def checksum(data: Tensor, first_word: int = 0) -> int:
    """Of the bytes of `data` (dense, any dtype, any device), a number in [0, 2^64)."""
    native = kernels.load() if data.device.type == "cpu" else None
    if native is None:
        return tensor_checksum(data, first_word)
    return int(native.sum_ranges(_address(data, "data"), _whole(data, first_word))[0])


def copy_checksum(source: Tensor, target: Tensor, first_word: int = 0) -> int:
    """Copies bytes from `source` to `target` (dense, of one size, apart) and sums them on the way.

    What arrived is proved by `checksum(target)` alone: this number is that of the bytes read.
    """
    if source.nbytes != target.nbytes:
        raise Internal(f"holds {target.nbytes} bytes for {source.nbytes}", field="target")
    addresses = _address(source, "source"), _address(target, "target")
    if abs(addresses[0] - addresses[1]) < source.nbytes and source.device == target.device:
        raise Internal("overlaps the source", field="target")
    on_cpu = source.device.type == "cpu" and target.device.type == "cpu"
    native = kernels.load() if on_cpu else None
    if native is None:
        _bytes(target).copy_(_bytes(source))
        return tensor_checksum(source, first_word)
    sums = native.copy_ranges(*addresses, _whole(source, first_word), checksums=True)
    assert sums is not None
    return int(sums[0])


def tensor_checksum(data: Tensor, first_word: int = 0) -> int:
    """The definition in integer tensor operations, on the device of `data`."""
    _address(data, "data")
    raw = _bytes(data)
    num_whole = raw.numel() // WORD_BYTES * WORD_BYTES
    total = 0
    for begin in range(0, num_whole, _CHUNK_WORDS * WORD_BYTES):
        end = min(begin + _CHUNK_WORDS * WORD_BYTES, num_whole)
        total += _sum_words(raw[begin:end], first_word + begin // WORD_BYTES)
    if rest := raw.numel() - num_whole:
        last = torch.zeros(WORD_BYTES, dtype=torch.uint8, device=raw.device)
        last[:rest] = raw[num_whole:]
        total += _sum_words(last, first_word + num_whole // WORD_BYTES)
    return total % MODULUS


def _sum_words(raw: Tensor, first_word: int) -> int:
    if raw.storage_offset() % WORD_BYTES:
        raw = raw.clone()  # words are read at word boundaries
    words = raw.view(torch.int64)
    folded = words ^ ((words >> 32) & 0xFFFFFFFF)  # >> keeps the sign of int64
    weights = torch.arange(words.numel(), dtype=torch.int64, device=raw.device)
    weights.add_(first_word).mul_(2).add_(1)
    return int(weights.mul_(folded).sum())  # int64 wraps: equal modulo 2^64


def _whole(data: Tensor, first_word: int) -> kernels.Ranges:
    """All of `data` as one range."""
    return np.array([(0, 0, data.nbytes, first_word)], np.uint64)


def _bytes(data: Tensor) -> Tensor:
    return data.reshape(-1).view(torch.uint8)


def _address(data: Tensor, name: str) -> int:
    if not data.is_contiguous():
        raise Internal(f"is not dense: {tuple(data.shape)}, strides {data.stride()}", field=name)
    return data.data_ptr()
