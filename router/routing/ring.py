"""Which prefill workers a decode worker meets before it needs them. Pure.

Where there are few, all of them. Where there are many, some that lie next to it on a ring, on which every
router finds the same ones: each decode worker keeps few links, each prefill worker has about as many readers
as any other, and who comes or goes changes little.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b
from itertools import chain, islice

from baton.types import PoolId
from router.routing.pools import Pool

NUM_LINKS = 32  # of a decode worker


class Ring:
    def __init__(self, prefill: Iterable[Pool]) -> None:
        self._places = sorted(((_place(pool.id), pool) for pool in prefill), key=lambda at: at[0])

    def nearest(self, decode: PoolId, num_pools: int) -> list[Pool]:
        """The next so many from the place of `decode` on."""
        first = bisect_left(self._places, _place(decode), key=lambda at: at[0])
        around = chain(self._places[first:], self._places[:first])
        return [pool for _, pool in islice(around, num_pools)]


def _place(pool_id: PoolId) -> bytes:
    return blake2b(str(pool_id).encode(), digest_size=8).digest()
