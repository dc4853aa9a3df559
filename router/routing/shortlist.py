"""Which pools are worth judging for a request, of however many there are. Pure.

What a pool costs is what it lacks of the prompt and what is ahead of it, so the best one is among those
that have most of the prompt and those that have least to do. Of pools that have equally much of it, none is
better than the least loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from baton.types import Role, Weights
from router.routing.index import Matches
from router.routing.load_order import LoadOrder
from router.routing.pools import Pool, Pools

_FEW = 12  # pools are all judged
_NUM_LEAST_LOADED = 4
_NUM_IDLE = 2
_NUM_GROUPS = 4
_NUM_OF_A_GROUP = 3
_SMALL_GROUP = 6  # is judged whole
_FAR = 32  # places in the order of load to look for members of a larger one

Takes = Callable[[Pool], bool]


def shortlist(
    pools: Pools, weights: Weights, hits: Matches, takes: Takes
) -> tuple[Sequence[Pool], Sequence[Pool]]:
    """Decode and prefill pools. Of those that `takes` allows, all where there are few, else some 15."""
    orders = pools.by_load(Role.DECODE, weights), pools.by_load(Role.PREFILL, weights)
    # Groups of many are found by the order of load, those of a few by who is in them.
    small: list[list[Pool]] = []
    large: list[int] = []
    if any(len(order) > _FEW for order in orders):
        for _, mask in hits.groups[:_NUM_GROUPS]:
            if mask.bit_count() <= _SMALL_GROUP:
                members = (pools.get(pool_id) for pool_id in hits.pools_in(mask))
                small.append([pool for pool in members if pool and pool.worker.weights == weights])
            else:
                large.append(mask)
    decode, prefill = (
        _of_role(role, order, hits, small, large, takes)
        for role, order in zip((Role.DECODE, Role.PREFILL), orders, strict=True)
    )
    return decode, prefill


def _of_role(
    role: Role,
    by_load: LoadOrder[Pool],
    hits: Matches,
    small: Sequence[Sequence[Pool]],
    large: Sequence[int],
    takes: Takes,
) -> Sequence[Pool]:
    if len(by_load) <= _FEW:
        return [pool for pool in by_load if takes(pool)]
    chosen, bit_of = _first(by_load, _NUM_LEAST_LOADED, takes), hits.bit_of
    near = by_load.first(_FAR) if large or role is Role.DECODE else []
    if role is Role.DECODE:  # whose load is that of decoding, but which may compute prompts, too
        chosen |= _first((p for p in near if not p.queue.num_tokens), _NUM_IDLE, takes)
    for members in small:
        chosen |= _first((p for p in members if p.worker.role is role), _SMALL_GROUP, takes)
    for mask in large:
        holders = (p for p in near if bit_of.get(p.id, 0) & mask)
        chosen |= _first(holders, _NUM_OF_A_GROUP, takes)
    return list(chosen)


def _first(pools: Iterable[Pool], num_pools: int, takes: Takes) -> dict[Pool, None]:
    found: dict[Pool, None] = {}
    for pool in pools:
        if takes(pool):
            found[pool] = None
            if len(found) == num_pools:
                break
    return found
