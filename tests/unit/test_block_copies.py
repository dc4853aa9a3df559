"""Copies of blocks belong to the sample they are made for."""

from __future__ import annotations

import pytest

from baton.errors import IntegrityError
from baton.scheduling import sample_blocks
from baton.scheduling.block_copies import BlockCopies
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.sample import Sample
from baton.types import SamplingParams


def held_sample(blocks: BlockManager, handle: int = 1) -> Sample:
    params = SamplingParams(max_tokens=1)
    sample = Sample(handle, 0, params, list(range(6)), 6, frozenset(), b"s")
    assert sample_blocks.take(sample, blocks)
    return sample


def block(blocks: BlockManager) -> int:
    taken = blocks.allocate(1)
    assert taken is not None
    return taken[0]


def test_a_copy_holds_its_source_until_the_step_is_over() -> None:
    blocks = BlockManager(8, 4)
    copies, sample = BlockCopies(blocks), held_sample(blocks)
    source = block(blocks)
    copies.queue(source, sample)
    blocks.release([source])
    assert blocks.counts().free == 5
    assert copies.take() == [(source, sample.block_table[-1])]
    blocks.check_integrity([sample.block_table, copies.sources])
    copies.done()
    assert blocks.counts().free == 6
    assert copies.take() == []


def test_a_copy_is_dropped_with_its_sample() -> None:
    blocks = BlockManager(8, 4)
    copies, sample = BlockCopies(blocks), held_sample(blocks)
    source = block(blocks)
    copies.queue(source, sample)
    blocks.release([source])
    copies.drop(sample)
    sample_blocks.give_back(sample, blocks)
    copies.check_integrity([])
    assert copies.take() == []
    assert blocks.counts().free == 8


def test_integrity_shows_a_copy_into_a_block_that_its_sample_does_not_hold() -> None:
    blocks = BlockManager(8, 4)
    copies, sample = BlockCopies(blocks), held_sample(blocks)
    source = block(blocks)
    copies.queue(source, sample)
    copies.check_integrity([sample])
    with pytest.raises(IntegrityError):
        copies.check_integrity([])  # the sample is gone
    sample_blocks.give_back(sample, blocks)
    with pytest.raises(IntegrityError):
        copies.check_integrity([sample])
