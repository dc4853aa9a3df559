"""What the workers of a model can take, as admission reckons with it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.prefill_cost import PrefillCost
from baton.types import Role
from router.routing.measured import usual_cost
from router.routing.pools import Pools


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many workers decode, how many compute prompts, and what prompts cost one of these; None until
    one has measured it."""

    num_decode_pools: int = 1
    num_computing_pools: int = 1
    cost: PrefillCost | None = None


def capacity_of(pools: Pools, model: str) -> Capacity:
    """Now. Where no prefill worker is up, decode workers compute prompts."""
    decode = pools.serving(Role.DECODE, model)
    computing = pools.serving(Role.PREFILL, model) or decode
    return Capacity(len(decode), len(computing), usual_cost(computing))
