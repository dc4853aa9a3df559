"""The routing index against a plain model of it."""

from __future__ import annotations

import random

from baton.types import BlockId, PoolId
from router.index import BlockIndex


def block(number: int) -> BlockId:
    return BlockId(number.to_bytes(16, "little"))


def test_match_counts_leading_blocks_only() -> None:
    index = BlockIndex()
    a, b, c = PoolId("a"), PoolId("b"), PoolId("c")
    index.store(a, map(block, [1, 2, 3]))
    index.store(b, map(block, [1, 3]))
    index.store(c, map(block, [2, 3]))
    assert index.match(map(block, [1, 2, 3, 4])) == {a: 3, b: 1}
    assert index.match(map(block, [9, 1])) == {}
    assert index.match([]) == {}


def test_random_events_match_a_plain_model() -> None:
    rng = random.Random(1)
    index = BlockIndex()
    pools = [PoolId(f"w{number}", number % 2) for number in range(6)]
    held: dict[PoolId, set[int]] = {pool: set() for pool in pools}
    for _ in range(3000):
        pool = rng.choice(pools)
        numbers = rng.sample(range(40), rng.randrange(1, 6))
        match rng.randrange(8):
            case 0:
                index.drop(pool)
                held[pool] = set()
            case 1 | 2 | 3:
                index.remove(pool, map(block, numbers))
                held[pool] -= set(numbers)
            case _:
                index.store(pool, map(block, numbers))
                held[pool] |= set(numbers)
        prompt = [rng.randrange(40) for _ in range(4)]
        expected = {}
        for each, blocks in held.items():
            depth = next((i for i, n in enumerate(prompt) if n not in blocks), len(prompt))
            if depth:
                expected[each] = depth
        assert index.match(map(block, prompt)) == expected
    for each, blocks in held.items():
        assert index.blocks_of(each) == set(map(block, blocks))
    for each in pools:
        index.drop(each)
        assert index.blocks_of(each) == set()
    assert index.match(map(block, range(40))) == {}
