"""Which pools are worth judging for a request, of however many there are. Pure.

What a pool costs is what it lacks of the prompt and what is ahead of it, so the best one is among those
that have most of the prompt and those that have least to do. Of pools that have equally much of it, none is
better than the least loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from baton.types import Role
from router.index import Matches
from router.pools import Pool, Pools

_FEW = 12  # pools are all judged
_NUM_LEAST_LOADED = 4
_NUM_IDLE = 2
_NUM_GROUPS = 4
_NUM_OF_A_GROUP = 3
_SMALL_GROUP = 6  # is judged whole
_FAR = 32  # places in the order of load to look for members of a larger one

Takes = Callable[[Pool], bool]


def shortlist(pools: Pools, role: Role, model: str, hits: Matches, takes: Takes) -> list[Pool]:
    """Of those that `takes` allows, all where there are few, else some 15 at most."""
    by_load = pools.by_load(role, model)
    if len(by_load) <= _FEW:
        return [pool for pool in by_load if takes(pool)]
    chosen = dict.fromkeys(_first(by_load, _NUM_LEAST_LOADED, takes))
    if role is Role.DECODE:  # whose load is that of decoding, but which may compute prompts, too
        idle = (pool for pool in islice(by_load, _FAR) if not len(pool.queue))
        chosen.update(dict.fromkeys(_first(idle, _NUM_IDLE, takes)))
    for _, mask in hits.groups[:_NUM_GROUPS]:
        if mask.bit_count() <= _SMALL_GROUP:
            known = (pools.get(pool_id) for pool_id in hits.pools_in(mask))
            members: Iterator[Pool] = (
                pool
                for pool in known
                if pool and pool.worker.role is role and pool.worker.model == model
            )
            chosen.update(dict.fromkeys(_first(members, _SMALL_GROUP, takes)))
        else:
            near = islice(by_load, _FAR)
            members = (pool for pool in near if hits.is_in(pool.id, mask))
            chosen.update(dict.fromkeys(_first(members, _NUM_OF_A_GROUP, takes)))
    return list(chosen)


def _first(pools: Iterable[Pool], num_pools: int, takes: Takes) -> Iterator[Pool]:
    return islice((pool for pool in pools if takes(pool)), num_pools)
