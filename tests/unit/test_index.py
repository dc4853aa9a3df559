"""The routing index against a plain model of it."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable

from baton.types import BlockId, PoolId
from router.routing.index import BYTES_PER_ENTRY, BlockIndex


def block(number: int) -> BlockId:
    return BlockId(number.to_bytes(16, "little"))


def blocks(numbers: Iterable[int]) -> list[BlockId]:
    return list(map(block, numbers))


def test_match_counts_leading_blocks_only() -> None:
    index = BlockIndex()
    a, b, c = PoolId("a"), PoolId("b"), PoolId("c")
    index.store(a, map(block, [1, 2, 3]))
    index.store(b, map(block, [1]))
    index.store(c, map(block, [7, 8]))
    assert index.match(blocks([1, 2, 3, 4])) == {a: 3, b: 1}
    assert index.match(blocks([9, 10])) == {}
    assert index.match([]) == {}


def test_random_events_match_a_plain_model() -> None:
    """Four conversations with a prefix in common, of which pools have some, forget ends, and are dropped."""
    rng = random.Random(1)
    index = BlockIndex()
    pools = [PoolId(f"w{number}", number % 2) for number in range(6)]
    stems = [
        blocks([*range(30), *range(100 * n, 100 * n + rng.randrange(90))]) for n in range(1, 5)
    ]
    held: dict[PoolId, set[BlockId]] = {pool: set() for pool in pools}
    for _ in range(3000):
        pool, stem = rng.choice(pools), rng.choice(stems)
        match rng.randrange(8):
            case 0:
                index.drop(pool)
                held[pool] = set()
            case 1 | 2 | 3:
                forgotten = [each for stem in stems for each in stem[rng.randrange(len(stem)) :]]
                if rng.random() < 0.9:  # the common prefix stays
                    forgotten = [each for each in forgotten if each not in stems[0][:30]]
                # A block is forgotten with all that goes on from it.
                index.remove(pool, forgotten)
                held[pool] -= set(forgotten)
                for other in stems:
                    kept = _leading(other, held[pool])
                    index.remove(pool, other[kept:])
                    held[pool] -= set(other[kept:])
            case _:
                stored = stem[: rng.randrange(len(stem) + 1)]
                index.store(pool, stored)
                held[pool] |= set(stored)
        prompt = [*rng.choice(stems)[: rng.randrange(130)], block(9999)]
        depths = {each: _leading(prompt, known) for each, known in held.items()}
        assert index.match(prompt) == {each: depth for each, depth in depths.items() if depth}
    for each, known in held.items():
        assert index.blocks_of(each) == known
    for each in pools:
        index.drop(each)
        assert index.blocks_of(each) == set()
    assert index.match(stems[0]) == {}


def _leading(prompt: list[BlockId], known: set[BlockId]) -> int:
    return next((i for i, each in enumerate(prompt) if each not in known), len(prompt))


def test_blocks_on_their_way_are_hits_until_they_have_come() -> None:
    index, a = BlockIndex(), PoolId("a")
    prompt = list(map(block, range(1, 6)))
    index.store(a, prompt[:2])
    index.expect(a, prompt[2:4])
    index.expect(a, prompt[2:5])
    assert index.match(prompt) == {a: 5}
    index.settle(a, prompt[2:5])
    assert index.match(prompt) == {a: 4}
    index.store(a, prompt[2:4])
    index.settle(a, prompt[2:4])
    assert index.match(prompt) == {a: 4}


def test_a_pool_that_is_dropped_is_expected_to_have_nothing() -> None:
    index, a, b = BlockIndex(), PoolId("a"), PoolId("b")
    prompt = list(map(block, range(1, 6)))
    index.expect(a, prompt)
    index.drop(a)
    index.store(b, prompt[:1])  # takes the place that `a` had
    assert index.match(prompt) == {b: 1}
    index.settle(a, prompt)
    assert index.match(prompt) == {b: 1}


def test_a_dropped_pool_is_swept_out_and_its_bit_given_to_others() -> None:
    index = BlockIndex()
    for generation in range(20):
        pool = PoolId(f"w{generation}")
        index.store(pool, map(block, range(1000)))
        assert index.match(blocks(range(1000))) == {pool: 1000}
        index.drop(pool)
        for number in range(600):  # other pools' events drive the sweep
            index.store(PoolId("other"), [block(10_000 + number)])
    assert len(index) <= 600 + 2 * 1000
    assert index.blocks_of(PoolId("other")) == set(map(block, range(10_000, 10_600)))


def test_memory_is_bounded_and_what_is_asked_for_stays() -> None:
    max_entries = 256 * 40
    index, pool = BlockIndex(max_entries * BYTES_PER_ENTRY), PoolId("a")
    rng = random.Random(3)
    hot = [BlockId(rng.randbytes(16)) for _ in range(200)]
    index.store(pool, hot)
    for _ in range(400):
        index.store(pool, [BlockId(rng.randbytes(16)) for _ in range(100)])
        index.touch(hot)
    assert index.match(hot) == {pool: 200}
    assert 0.8 * max_entries < len(index) <= max_entries


def test_a_block_and_pool_take_at_most_a_hundred_bytes() -> None:
    num_blocks = 156_000  # tables as full as those of ten million blocks
    index, rng = BlockIndex(), random.Random(4)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(num_blocks // 1000):
        index.store(PoolId(f"w{number % 50}"), [BlockId(rng.randbytes(16)) for _ in range(1000)])
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken / num_blocks <= 100
