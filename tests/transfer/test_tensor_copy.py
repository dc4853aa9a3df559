"""Copies and sums by tensor operations, as on a GPU: the same bytes and numbers as by the compiled ones."""

from dataclasses import replace

import pytest
import torch

from kv_transfer.base import Write
from kv_transfer.layout import PoolLayout, plan
from kv_transfer.pool import Pool, copy_blocks, source_checksums
from kv_transfer.tensor_copy import as_checksums, as_words, copy_pieces, sum_pieces
from tests.checksum_definition import definition
from tests.transfer.worlds import SMALL, random_pool

WRITES = [
    Write(0, [3, 4, 5], [8, 9, 10], 3),
    Write(1, [3, 4, 9, 10, 2], [8, 9, 1, 0, 15], 2),
    Write(2, [7], [7]),
    Write(0, [], [], 3),
]
LAYOUTS = [
    SMALL,
    replace(SMALL, dtype="int8"),
    replace(SMALL, num_kv_heads=1, latent_dim=6),
    replace(SMALL, num_kv_heads=4, tp_size=2, tp_rank=1),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "quantized", "latent", "tp"])
def test_they_do_what_the_compiled_ones_do(layout: PoolLayout, write: Write) -> None:
    source = random_pool(replace(layout, tp_size=1, tp_rank=0))
    slices = plan(source.layout, layout)
    compiled, by_tensors = (
        Pool(layout, torch.zeros(layout.size_bytes, dtype=torch.uint8)) for _ in range(2)
    )
    expected = copy_blocks(source, compiled, slices, write, checksums=True)
    words = as_words(source.memory, source.layout)
    copy_pieces(words, as_words(by_tensors.memory, layout), slices, write)
    assert torch.equal(by_tensors.memory, compiled.memory)
    sums = sum_pieces(words, write.source_blocks, write.layers, slices, layout.piece_words)
    assert as_checksums(sums) == expected
    assert source_checksums(source, layout, slices, write) == expected


def test_a_sum_is_that_of_the_definition() -> None:
    pool = random_pool(SMALL)
    layout = SMALL
    whole = plan(layout, layout)
    words = as_words(pool.memory, layout)
    sums = sum_pieces(words, [6], range(layout.num_layers), whole, layout.piece_words)
    pieces = torch.cat([pool.piece(layer, 6) for layer in range(layout.num_layers)])
    assert as_checksums(sums) == [definition(pieces.numpy().tobytes())] == [pool.checksum(6)]


def test_sums_do_not_depend_on_where_tensors_are_made_by_default() -> None:
    pool = random_pool(SMALL)
    words, whole = as_words(pool.memory, SMALL), plan(SMALL, SMALL)
    with torch.device("meta"):  # as a program does that works on a GPU
        sums = sum_pieces(words, [6], range(SMALL.num_layers), whole, SMALL.piece_words)
    assert as_checksums(sums) == [pool.checksum(6)]
