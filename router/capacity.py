"""What the workers of a model can take, as admission reckons with it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.types import Role
from router.pools import Pools


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many workers decode, how many compute prompts, and how fast one of these is; 0 until one has
    measured it."""

    num_decode_pools: int = 1
    num_computing_pools: int = 1
    prefill_tokens_per_s: float = 0.0


def capacity_of(pools: Pools, model: str) -> Capacity:
    """Now. Where no prefill worker is up, decode workers compute prompts."""
    decode = pools.serving(Role.DECODE, model)
    computing = pools.serving(Role.PREFILL, model) or decode
    rates = sorted(pool.load.prefill_tokens_per_s for pool in computing if pool.load)
    measured = [rate for rate in rates if rate]
    median = measured[len(measured) // 2] if measured else 0.0
    return Capacity(len(decode), len(computing), median)
