"""The hand-off's checksum: one number by every way of computing it, and what it must notice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kv_transfer import kernels
from kv_transfer.checksum import MODULUS, WORD_BYTES
from kv_transfer.layout import Slice
from kv_transfer.tensor_copy import as_checksums, sum_pieces
from tests.checksum_definition import definition

Way = Callable[[Tensor, int], int]  # of whole words, of which the first has this number


def native() -> kernels.TransferKernels:
    found = kernels.load()
    if found is None:
        pytest.skip("no C compiler")
    return found


def by_c(data: Tensor, first_word: int) -> int:
    whole = np.array([(0, 0, data.nbytes, first_word)], np.uint64)
    return int(native().sum_ranges(data.data_ptr(), whole)[0])


def by_copy_in_c(data: Tensor, first_word: int) -> int:
    target = torch.zeros_like(data)
    whole = np.array([(0, 0, data.nbytes, first_word)], np.uint64)
    sums = native().copy_ranges(data.data_ptr(), target.data_ptr(), whole, checksums=True)
    assert sums is not None
    assert torch.equal(data, target)
    return int(sums[0])


def by_tensors(data: Tensor, first_word: int) -> int:
    words = data.view(torch.int64)
    part = Slice(0, first_word * WORD_BYTES, data.nbytes)
    sums = sum_pieces(words.view(1, 1, -1), [0], range(1), [part], words.numel())
    return as_checksums(sums)[0]


def checksum(data: Tensor, first_word: int = 0) -> int:
    return by_c(data, first_word)


def words_of(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8).view(torch.int64)


WAYS = pytest.mark.parametrize("way", [by_c, by_copy_in_c, by_tensors])


@WAYS
@settings(deadline=None)  # the first example may have to compile
@given(data=st.binary(min_size=8, max_size=304), first_word=st.integers(0, 2**40))
def test_every_way_follows_the_definition(way: Way, data: bytes, first_word: int) -> None:
    whole = data[: len(data) // WORD_BYTES * WORD_BYTES]
    assert way(words_of(whole), first_word) == definition(whole, first_word)


@WAYS
def test_large_buffers(way: Way) -> None:
    """Past the sizes where C streams; at the beginning of a cache line or not."""
    data = torch.randint(-(2**62), 2**62, ((9 << 17) + 3,))
    assert way(data, 3) == definition(data.numpy().tobytes(), 3)
    assert way(data[1:], 3) == definition(data[1:].numpy().tobytes(), 3)


def test_parts_add_up() -> None:
    data = torch.randn(1000)
    cuts = [0, 2, 64, 130, 998, 1000]
    parts = [checksum(data[a:b], a // 2) for a, b in pairwise(cuts)]
    assert sum(parts) % MODULUS == checksum(data)


@pytest.mark.parametrize("bit", range(64))
def test_one_flipped_bit_is_noticed(bit: int) -> None:
    words = torch.randint(-(2**62), 2**62, (512,))
    before = checksum(words)
    for at in (0, 1, 255, 511):
        changed = words.clone()
        changed[at] ^= torch.tensor(1, dtype=torch.int64) << bit
        assert checksum(changed) != before


def test_words_and_blocks_that_change_places_are_noticed() -> None:
    """Also words that differ in their top bits alone, a power of two apart."""
    data = torch.randn(64, 4096)
    before = checksum(data)
    for a, b in ((0, 1), (0, 32), (7, 63)):
        swapped = data.clone()
        swapped[[a, b]] = data[[b, a]]
        assert checksum(swapped) != before
    words = torch.zeros(1 << 20, dtype=torch.int64)
    words[0] = 1 << 62
    before = checksum(words)
    for distance in (1, 2, 4096, 1 << 15, 1 << 19):
        swapped = words.roll(distance)
        assert checksum(swapped) != before
