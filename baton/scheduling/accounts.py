"""What a scheduler tells of its pool, as the cluster hears it. Pure."""

from __future__ import annotations

from typing import Protocol

from baton.scheduling.block_manager import BlockManager
from baton.scheduling.step_time import StepTimeModel
from baton.types import PoolId, PoolLoad


class Accounts(Protocol):
    """Of a role's scheduler."""

    @property
    def blocks(self) -> BlockManager: ...
    @property
    def step_time(self) -> StepTimeModel: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_waiting_tokens(self) -> int: ...


def pool_load(pool: PoolId, incarnation: int, scheduler: Accounts) -> PoolLoad:
    """Now."""
    counts, step_time = scheduler.blocks.counts(), scheduler.step_time
    return PoolLoad(
        pool=pool,
        incarnation=incarnation,
        num_running_requests=scheduler.num_running,
        num_waiting_requests=scheduler.num_waiting,
        num_waiting_tokens=scheduler.num_waiting_tokens,
        num_total_blocks=counts.total,
        num_free_blocks=counts.free,
        num_held_blocks=counts.held,
        num_cached_blocks=counts.cached,
        num_quarantined_blocks=counts.quarantined,
        prefill_tokens_per_s=step_time.prefill_tokens_per_s,
        decode_step_s=step_time.decode_step_s,
        prefill_cost=step_time.prefill_cost,
        decode_stream_s=step_time.decode_stream_s,
    )
