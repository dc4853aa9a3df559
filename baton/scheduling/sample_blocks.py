"""What passes between a sample and the block manager: taking, publishing, giving back. Pure."""

from __future__ import annotations

from baton.scheduling.block_manager import BlockManager
from baton.scheduling.sample import Sample


def take(sample: Sample, blocks: BlockManager, num_spare: int = 0) -> bool:
    """Gives `sample` blocks for all its tokens, the longest cached prefix among them. False, and nothing
    taken, unless `num_spare` blocks would stay available."""
    block_size = blocks.block_size
    reusable = sample.extend_block_ids(block_size)[: sample.num_reusable_tokens // block_size]
    table = blocks.acquire(reusable)
    num_hits = len(table)
    num_needed = -(-len(sample.token_ids) // block_size) - num_hits
    fits = num_needed + num_spare <= blocks.num_available
    taken = blocks.allocate(num_needed) if fits else None
    if taken is None:
        blocks.release(table)
        return False
    sample.start_from_cache(table + taken, num_hits, block_size)
    return True


def num_wanted(sample: Sample, blocks: BlockManager) -> int:
    """How many of the blocks that are available now `take` would use."""
    block_size = blocks.block_size
    reusable = sample.extend_block_ids(block_size)[: sample.num_reusable_tokens // block_size]
    return -(-len(sample.token_ids) // block_size) - blocks.num_matched(reusable, held=True)


def publish(sample: Sample, blocks: BlockManager) -> None:
    """Makes the full blocks that `sample` has computed findable."""
    num_full = sample.num_computed // blocks.block_size
    if num_full > sample.num_published:
        block_ids = sample.extend_block_ids(blocks.block_size)
        for index in range(sample.num_published, num_full):
            blocks.publish(sample.block_table[index], block_ids[index])
        sample.num_published = num_full


def give_back(sample: Sample, blocks: BlockManager) -> None:
    """Drops all its references; what is published stays as cache."""
    blocks.release(sample.block_table)
    sample.block_table = []
    sample.num_computed = sample.num_published = 0
