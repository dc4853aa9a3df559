"""Which pools hold which KV blocks, as far as their events have told. Pure.

Maps from block id to a bit mask of pools: block ids are chained hashes, so the longest prefix that a pool
holds is found by walking a prompt's ids while the mask of pools that had all before it is not empty.
Correctness never depends on completeness: a wrong entry costs a worse choice, never a wrong token.

Entries lie in 256 shards, by the first byte of the id, so that nothing that walks entries stops the router
for long: a pool that is gone is forgotten at once (its bit is), and its entries are swept shard by shard.
A shard has two generations. What is stored or hit is in the young one; where there is no room, entries of
the old one go, those stored last first, so that a prefix outlives what was built on it; when it is empty,
the young one grows old. Without room for a block nothing is lost but a hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from baton.types import BlockId, PoolId

_NUM_SHARDS = 256
# A key of 15 bytes takes 48, its place in a table 33 to 67 by how full the table is, and there are two
# tables, of which one is about empty.
BYTES_PER_ENTRY = 128
MAX_BYTES = 4 << 30  # where nothing else is said

_Shard = dict[bytes, int]


class Matches(Mapping[PoolId, int]):
    """The leading tokens that each pool holds; pools without any are left out.

    `groups`: pools with equally many, deepest first, as (tokens, bit mask of pools).
    """

    def __init__(
        self,
        groups: list[tuple[int, int]],
        bit_of: Mapping[PoolId, int],
        pool_of: Mapping[int, PoolId],
    ) -> None:
        self.groups = groups
        self._holders = 0  # all pools in groups
        for _, mask in groups:
            self._holders |= mask
        self._bit_of = bit_of
        self._pool_of = pool_of

    def __getitem__(self, pool: PoolId) -> int:
        bit = self._bit_of[pool]
        for num_tokens, mask in self.groups:
            if mask & bit:
                return num_tokens
        raise KeyError(pool)

    def get(self, pool: PoolId, default: Any = None) -> Any:
        """Asked for every pool that is judged, of which most hold nothing."""
        bit = self._bit_of.get(pool, 0)
        if bit & self._holders:
            for num_tokens, mask in self.groups:
                if mask & bit:
                    return num_tokens
        return default

    @property
    def most(self) -> int:
        """The most that any pool holds."""
        return self.groups[0][0] if self.groups else 0

    def is_in(self, pool: PoolId, mask: int) -> bool:
        """Whether `mask`, of a group, names `pool`."""
        return bool(self._bit_of.get(pool, 0) & mask)

    def __iter__(self) -> Iterator[PoolId]:
        for _, mask in self.groups:
            yield from self.pools_in(mask)

    def __len__(self) -> int:
        return sum(mask.bit_count() for _, mask in self.groups)

    def pools_in(self, mask: int) -> Iterator[PoolId]:
        while mask:
            bit = mask & -mask
            mask ^= bit
            yield self._pool_of[bit]


class BlockIndex:
    """Of at most about `max_bytes`."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_per_shard = max(1, max_bytes // BYTES_PER_ENTRY // _NUM_SHARDS)
        self._young: list[_Shard] = [{} for _ in range(_NUM_SHARDS)]
        self._old: list[_Shard] = [{} for _ in range(_NUM_SHARDS)]
        self._expected: dict[BlockId, int] = {}
        self._num_expecting: dict[PoolId, dict[BlockId, int]] = {}
        self._bit_of: dict[PoolId, int] = {}
        self._pool_of: dict[int, PoolId] = {}
        self._live = 0  # the bits of `_bit_of`
        self._gone = 0  # bits of dropped pools that entries may still have
        self._sweeping = 0  # those of them that the sweep in progress removes
        self._next_swept = _NUM_SHARDS
        self._free_bits: list[int] = []
        self._num_bits = 0

    def __len__(self) -> int:
        """Blocks, of which some may be of pools that are gone."""
        return sum(map(len, chain(self._young, self._old)))

    # What pools tell

    def store(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """`pool` has published these blocks."""
        bit = self._bit(pool)
        before = after = 0  # neighbours have the same holders: they share one int
        for block_id in block_ids:
            shard, key = block_id[0], block_id[1:]
            young = self._young[shard]
            held = young.get(key)
            if held is None:
                held = self._old[shard].pop(key, 0) & ~self._gone
                if not held:
                    young[key] = bit
                    self._make_room(shard)
                    continue
            if held != before:
                before, after = held, held | bit
            young[key] = after
        self._sweep()

    def remove(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """`pool` has forgotten these blocks."""
        keep = ~self._bit(pool)
        for block_id in block_ids:
            shard, key = block_id[0], block_id[1:]
            entries = self._young[shard]
            held = entries.get(key)
            if held is None:
                entries = self._old[shard]
                held = entries.get(key)
                if held is None:
                    continue
            if rest := held & keep:
                entries[key] = rest
            else:
                del entries[key]
        self._sweep()

    def drop(self, pool: PoolId) -> None:
        """`pool` is gone, or is about to be told anew."""
        bit = self._bit_of.pop(pool, None)
        if bit is not None:
            self._forget_expected(pool, bit)
            del self._pool_of[bit]
            self._live ^= bit
            self._gone |= bit

    # What is on its way

    def expect(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """`pool` is about to have these blocks: hits for whoever comes next. Ends with `settle`."""
        bit, expected = self._bit(pool), self._expected
        num_expecting = self._num_expecting.setdefault(pool, {})
        for block_id in block_ids:
            num_before = num_expecting.get(block_id, 0)
            num_expecting[block_id] = num_before + 1
            if not num_before:
                expected[block_id] = expected.get(block_id, 0) | bit

    def settle(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """What was expected has come, and was told as stored, or will not come."""
        num_expecting = self._num_expecting.get(pool)
        if num_expecting is None:
            return  # dropped meanwhile
        settled = []
        for block_id in block_ids:
            num_left = num_expecting.get(block_id, 0) - 1
            if num_left > 0:
                num_expecting[block_id] = num_left
            elif num_left == 0:
                del num_expecting[block_id]
                settled.append(block_id)
        self._unexpect(self._bit(pool), settled)

    def _forget_expected(self, pool: PoolId, bit: int) -> None:
        self._unexpect(bit, self._num_expecting.pop(pool, ()))

    def _unexpect(self, bit: int, block_ids: Iterable[BlockId]) -> None:
        expected = self._expected
        for block_id in block_ids:
            if rest := expected[block_id] & ~bit:
                expected[block_id] = rest
            else:
                del expected[block_id]

    # What is asked

    def match(self, block_ids: Iterable[BlockId], block_size: int = 1) -> Matches:
        """How much of a prompt each pool holds, or is about to, in tokens of `block_size` a block."""
        young, old, expected = self._young, self._old, self._expected
        groups: list[tuple[int, int]] = []
        alive = self._live
        depth = 0
        for block_id in block_ids:
            shard = block_id[0]
            held = young[shard].get(block_id[1:], 0)
            if not held and old[shard]:
                held = self._rejuvenate(shard, block_id[1:])
            if block_id in expected:
                held |= expected[block_id]
            holders = held & alive
            if holders != alive:
                if depth:
                    groups.append((depth * block_size, alive & ~holders))
                alive = holders
                if not alive:
                    break
            depth += 1
        if alive and depth:
            groups.append((depth * block_size, alive))
        groups.reverse()
        return Matches(groups, self._bit_of, self._pool_of)

    def blocks_of(self, pool: PoolId) -> set[BlockId]:
        """All that `pool` is believed to hold. Walks the whole index."""
        bit = self._bit_of.get(pool, 0)
        return {
            BlockId(bytes((number % _NUM_SHARDS,)) + key)
            for number, shard in enumerate(chain(self._young, self._old))
            for key, pools in shard.items()
            if pools & bit
        }

    # Room

    def _rejuvenate(self, shard: int, key: bytes) -> int:
        """The holders of a key that is not in the young generation; found, it is from now on."""
        held = self._old[shard].pop(key, 0) & ~self._gone
        if held:
            self._young[shard][key] = held
        return held

    def _make_room(self, shard: int) -> None:
        young, old = self._young[shard], self._old[shard]
        if len(young) + len(old) <= self._max_per_shard:
            return
        if not old:
            self._young[shard], self._old[shard] = {}, young
            old = young
        old.popitem()

    # Pools

    def _bit(self, pool: PoolId) -> int:
        bit = self._bit_of.get(pool)
        if bit is None:
            if self._free_bits:
                bit = self._free_bits.pop()
            else:
                bit = 1 << self._num_bits
                self._num_bits += 1
            self._bit_of[pool] = bit
            self._pool_of[bit] = pool
            self._live |= bit
        return bit

    def _sweep(self) -> None:
        """Takes gone pools out of one shard; their bits are free for others after the last one."""
        if self._next_swept == _NUM_SHARDS:
            if not self._gone:
                return
            self._sweeping, self._next_swept = self._gone, 0
        shard, swept = self._next_swept, self._sweeping
        for entries in (self._young[shard], self._old[shard]):
            for key in [key for key, pools in entries.items() if pools & swept]:
                if rest := entries[key] & ~swept:
                    entries[key] = rest
                else:
                    del entries[key]
        self._next_swept += 1
        if self._next_swept == _NUM_SHARDS:
            self._gone ^= swept
            while swept:
                bit = swept & -swept
                swept ^= bit
                self._free_bits.append(bit)
