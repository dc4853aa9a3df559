"""The hand-off's checksum: one number by every way of computing it, and what it must notice."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.errors import Internal
from kv_transfer import kernels
from kv_transfer.checksum import MODULUS, checksum, copy_checksum, tensor_checksum

Way = Callable[[Tensor, int], int]


def by_copy(data: Tensor, first_word: int) -> int:
    target = torch.zeros_like(data)
    number = copy_checksum(data, target, first_word)
    assert torch.equal(data.reshape(-1).view(torch.uint8), target.reshape(-1).view(torch.uint8))
    assert checksum(target, first_word) == number
    return number


def definition(data: bytes, first_word: int) -> int:
    total = 0
    for i in range(0, len(data), 8):
        word = int.from_bytes(data[i : i + 8], "little")
        total += (2 * (first_word + i // 8) + 1) * (word ^ (word >> 32))
    return total % MODULUS


def tensor_of(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


WAYS = pytest.mark.parametrize("way", [checksum, tensor_checksum, by_copy])


@WAYS
@settings(deadline=None)  # the first example may have to compile
@given(data=st.binary(max_size=300), first_word=st.integers(0, 2**40))
def test_every_way_follows_the_definition(way: Way, data: bytes, first_word: int) -> None:
    assert way(tensor_of(data), first_word) == definition(data, first_word)


@WAYS
def test_large_buffers(way: Way) -> None:
    """Past the sizes where C streams and the tensor operations cut into chunks; aligned or not."""
    data = torch.randint(0, 256, ((9 << 20) + 29,), dtype=torch.uint8)
    assert way(data, 3) == definition(data.numpy().tobytes(), 3)
    assert way(data[8:], 3) == definition(data[8:].numpy().tobytes(), 3)
    assert way(data[3:], 3) == definition(data[3:].numpy().tobytes(), 3)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_any_dtype_and_shape(way: Way, dtype: torch.dtype) -> None:
    data = torch.randn(3, 2, 5, 16, 8).to(dtype)
    assert way(data, 0) == definition(data.view(torch.uint8).numpy().tobytes(), 0)


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


def test_wrong_tensors_are_errors() -> None:
    data = torch.zeros(64)
    with pytest.raises(Internal, match="data"):
        checksum(data[::2])
    with pytest.raises(Internal, match="target"):
        copy_checksum(data, torch.zeros(63))
    with pytest.raises(Internal, match="overlaps"):
        copy_checksum(data[:32], data[16:48])


def test_without_a_compiler_the_number_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randn(777)
    before = checksum(data)
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert checksum(data) == by_copy(data, 0) == before
