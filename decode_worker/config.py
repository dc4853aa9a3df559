"""What a decode worker is told at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.worker.config import HostConfig
from decode_worker.scheduler import SchedulerLimits


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """`max_step_s` is what the inter-token latency target leaves for one step. `verify_checksums` off:
    KV that prefill workers send is decoded as it came; for trusted links only."""

    host: HostConfig = field(default_factory=HostConfig)
    max_running: int = 64
    max_step_s: float = 0.25
    min_chunk_tokens: int = 16
    max_chunk_tokens: int = 512
    verify_checksums: bool = True

    def limits(self, max_model_len: int) -> SchedulerLimits:
        return SchedulerLimits(
            max_model_len,
            self.max_running,
            self.max_step_s,
            self.min_chunk_tokens,
            self.max_chunk_tokens,
        )
