"""Which pools hold which KV blocks, as far as their events have told. Pure.

Maps from block id to a bit mask of pools. Block ids are chained hashes, and who has a block has all that it
goes on from, since caches forget ends first: so the places where pools' prefixes of a prompt end are found
by halving it. Correctness never depends on completeness: a wrong entry costs a worse choice, never a wrong
token.

Entries lie in 256 shards, by the first byte of the id, so that nothing that walks entries stops the router
for long: a pool that is gone is forgotten at once (its bit is), and its entries are swept shard by shard.
A shard has two generations. What is stored or used is in the young one; where there is no room, entries of
the old one go, those stored last first, so that a prefix outlives what was built on it; when it is empty,
the young one grows old. Without room for a block nothing is lost but a hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    `groups`: pools with equally many, deepest first, as (tokens, bit mask of pools). `bit_of`: the bit of
    every pool in such masks.
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
        self.bit_of = bit_of
        self._pool_of = pool_of

    def __getitem__(self, pool: PoolId) -> int:
        bit = self.bit_of[pool]
        for num_tokens, mask in self.groups:
            if mask & bit:
                return num_tokens
        raise KeyError(pool)

    def get(self, pool: PoolId, default: Any = None) -> Any:
        """Asked for every pool that is judged, of which most hold nothing."""
        bit = self.bit_of.get(pool, 0)
        if bit & self._holders:
            for num_tokens, mask in self.groups:
                if mask & bit:
                    return num_tokens
        return default

    @property
    def most(self) -> int:
        """The most that any pool holds."""
        return self.groups[0][0] if self.groups else 0

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
        self.version = 0  # of what can be matched
        self._has_old = False
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
        self.version += 1
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
        self.version += 1
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
        self.version += 1
        bit = self._bit_of.pop(pool, None)
        if bit is not None:
            self._forget_expected(pool, bit)
            del self._pool_of[bit]
            self._live ^= bit
            self._gone |= bit

    # What is on its way

    def expect(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """`pool` is about to have these blocks: hits for whoever comes next. Ends with `settle`."""
        self.version += 1
        bit, expected = self._bit(pool), self._expected
        num_expecting = self._num_expecting.setdefault(pool, {})
        for block_id in block_ids:
            num_before = num_expecting.get(block_id, 0)
            num_expecting[block_id] = num_before + 1
            if not num_before:
                expected[block_id] = expected.get(block_id, 0) | bit

    def settle(self, pool: PoolId, block_ids: Iterable[BlockId]) -> None:
        """What was expected has come, and was told as stored, or will not come."""
        self.version += 1
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

    def match(self, block_ids: Sequence[BlockId], block_size: int = 1) -> Matches:
        """How much of a prompt each pool holds, or is about to, in tokens of `block_size` a block."""
        groups: list[tuple[int, int]] = []
        if not block_ids:
            return Matches(groups, self._bit_of, self._pool_of)
        num_blocks, live = len(block_ids), self._live
        all_of_it = self._holders(block_ids[-1]) & live
        if all_of_it:
            groups.append((num_blocks * block_size, all_of_it))
        # Spans of the prompt, deepest last: `before` hold all to `start`, `after` of them all to `end`.
        spans = [(0, live, num_blocks, all_of_it)]
        while spans:
            start, before, end, after = spans.pop()
            if before == after:
                continue
            if end - start == 1:
                if start:
                    groups.append((start * block_size, before & ~after))
                continue
            middle = (start + end) // 2
            holders = self._holders(block_ids[middle - 1]) & before
            spans.append((start, before, middle, holders))
            spans.append((middle, holders, end, after))
        return Matches(groups, self._bit_of, self._pool_of)

    def touch(self, block_ids: Iterable[BlockId]) -> None:
        """These are used: they stay longer than those that are not."""
        if not self._has_old:
            return
        for block_id in block_ids:
            shard, key = block_id[0], block_id[1:]
            if held := self._old[shard].pop(key, 0) & ~self._gone:
                self._young[shard][key] = held

    def blocks_of(self, pool: PoolId) -> set[BlockId]:
        """All that `pool` is believed to hold. Walks the whole index."""
        bit = self._bit_of.get(pool, 0)
        return {
            BlockId(bytes((number % _NUM_SHARDS,)) + key)
            for number, shard in enumerate(chain(self._young, self._old))
            for key, pools in shard.items()
            if pools & bit
        }

    def _holders(self, block_id: BlockId) -> int:
        shard, key = block_id[0], block_id[1:]
        held = self._young[shard].get(key, 0)
        if not held and self._has_old:
            held = self._old[shard].get(key, 0)
        return held | self._expected.get(block_id, 0)

    # Room

    def _make_room(self, shard: int) -> None:
        young, old = self._young[shard], self._old[shard]
        if len(young) + len(old) <= self._max_per_shard:
            return
        if not old:
            self._young[shard], self._old[shard] = {}, young
            self._has_old = True
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
