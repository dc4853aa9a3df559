"""Which pools hold which KV blocks, as far as their events have told. Pure.

A dict from block id to a bit mask of pools: block ids are chained hashes, so the longest prefix that a pool
holds is found by walking a prompt's ids while the mask of pools that had all before it is not empty.
Correctness never depends on completeness: a wrong entry costs a worse choice, never a wrong token.
"""

from __future__ import annotations

from collections.abc import Iterable

from baton.types import BlockId, PoolId


class BlockIndex:
    def __init__(self) -> None:
        self._pools_of: dict[BlockId, int] = {}
        self._bit_of: dict[PoolId, int] = {}
        self._free_bits: list[int] = []

    def __len__(self) -> int:
        return len(self._pools_of)

    def store(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """`pool` has published these blocks."""
        bit, pools_of = self._bit(pool), self._pools_of
        for block_id in block_ids:
            pools_of[block_id] = pools_of.get(block_id, 0) | bit

    def remove(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """`pool` has forgotten these blocks."""
        keep, pools_of = ~self._bit(pool), self._pools_of
        for block_id in block_ids:
            rest = pools_of.get(block_id, 0) & keep
            if rest:
                pools_of[block_id] = rest
            else:
                pools_of.pop(block_id, None)

    def drop(self, pool: PoolId) -> None:
        """`pool` is gone, or is about to be told anew."""
        bit = self._bit_of.pop(pool, None)
        if bit is None:
            return
        self._free_bits.append(bit)
        touched = [block_id for block_id, pools in self._pools_of.items() if pools & bit]
        for block_id in touched:
            rest = self._pools_of[block_id] & ~bit
            if rest:
                self._pools_of[block_id] = rest
            else:
                del self._pools_of[block_id]

    def match(self, block_ids: Iterable[BlockId]) -> dict[PoolId, int]:
        """The number of leading blocks that each pool holds; pools without any are left out."""
        depths: dict[int, int] = {}
        alive = -1  # every pool
        depth = 0
        for block_id in block_ids:
            holders = self._pools_of.get(block_id, 0) & alive
            if depth and holders != alive:
                depths[alive & ~holders] = depth
            alive = holders
            if not alive:
                break
            depth += 1
        if alive > 0:
            depths[alive] = depth
        return {
            pool: depth
            for pool, bit in self._bit_of.items()
            for mask, depth in depths.items()
            if mask & bit
        }

    def blocks_of(self, pool: PoolId) -> set[BlockId]:
        """All that `pool` is believed to hold. Walks the whole index."""
        bit = self._bit_of.get(pool, 0)
        return {block_id for block_id, pools in self._pools_of.items() if pools & bit}

    def _bit(self, pool: PoolId) -> int:
        bit = self._bit_of.get(pool)
        if bit is None:
            bit = self._free_bits.pop() if self._free_bits else 1 << len(self._bit_of)
            self._bit_of[pool] = bit
        return bit
