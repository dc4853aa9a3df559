"""Which pool serves a request. Pure: what is known of the pools goes in, the choice comes out."""

from __future__ import annotations

from collections.abc import Sequence

from router.pools import Pool


def choose_decode_pool(pools: Sequence[Pool]) -> Pool | None:
    """The pool with the least work in flight for its measured speed; None where there is none.

    Ties go to the pool with the most free blocks, not to the lowest number: otherwise one worker's cache
    fills while its neighbour's stays empty.
    """
    return min(pools, key=_predicted_wait, default=None)


def _predicted_wait(pool: Pool) -> tuple[float, int]:
    load = pool.load
    rate = load.prefill_tokens_per_s if load and load.prefill_tokens_per_s else 1.0
    num_free = (
        load.num_free_blocks + load.num_cached_blocks if load else pool.worker.num_total_blocks
    )
    return (pool.num_in_flight_tokens / rate, -num_free)
