"""What a prefill worker is told at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefill_worker.scheduler import PrefillLimits
from worker.config import HostConfig


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """`max_step_s` bounds a step, so that a cancelled request stops soon and nobody waits long for a
    turn. `ageing_tokens_per_s`: how many tokens of head start a second of waiting is worth."""

    host: HostConfig = field(default_factory=HostConfig)
    max_step_s: float = 0.25
    min_chunk_tokens: int = 64
    max_chunk_tokens: int = 512
    ageing_tokens_per_s: float = 500.0

    def limits(self) -> PrefillLimits:
        return PrefillLimits(
            self.max_step_s,
            self.min_chunk_tokens,
            self.max_chunk_tokens,
            self.ageing_tokens_per_s,
        )
