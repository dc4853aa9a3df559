"""Which prefill workers a decode worker meets beforehand."""

from __future__ import annotations

from collections import Counter

from baton.types import PoolId, Role
from router.routing.pools import Pool
from router.routing.ring import Ring
from tests.unit.lives import make_worker


def prefill(num_pools: int) -> list[Pool]:
    return [
        Pool(PoolId(f"p-{number}"), make_worker(f"p-{number}", Role.PREFILL))
        for number in range(num_pools)
    ]


def test_few_are_all_met_once() -> None:
    pools = prefill(5)
    assert sorted(each.id for each in Ring(pools).nearest(PoolId("d-0"), 8)) == [
        p.id for p in pools
    ]
    assert Ring([]).nearest(PoolId("d-0"), 8) == []
    assert Ring(pools).nearest(PoolId("d-0"), 0) == []


def test_links_are_bounded_on_both_sides_and_every_router_finds_the_same() -> None:
    pools, num_links = prefill(300), 16
    ring, same = Ring(pools), Ring(reversed(pools))
    readers: Counter[PoolId] = Counter()
    for number in range(300):
        near = ring.nearest(PoolId(f"d-{number}"), num_links)
        assert near == same.nearest(PoolId(f"d-{number}"), num_links)
        assert len(set(near)) == len({each.id for each in near}) == num_links
        readers.update(each.id for each in near)
    assert max(readers.values()) < 3 * num_links
    assert len(readers) > 290


def test_who_comes_changes_little() -> None:
    pools, num_links = prefill(101), 16
    before, after = Ring(pools[:-1]), Ring(pools)
    names = [PoolId(f"d-{number}") for number in range(100)]
    fresh = [set(after.nearest(n, num_links)) - set(before.nearest(n, num_links)) for n in names]
    assert all(each <= {pools[-1]} for each in fresh)
    assert any(fresh)
