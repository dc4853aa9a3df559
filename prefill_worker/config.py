"""What a prefill worker is told at start-up."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.prefill_cost import AGEING
from baton.worker.config import HostConfig
from prefill_worker.scheduler import PrefillLimits


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """`max_step_s` bounds a step, so that a cancelled request stops soon and nobody waits long for a
    turn. `ageing`: how many seconds of work less a second of waiting counts as; routers predict by the
    usual one."""

    host: HostConfig = field(default_factory=HostConfig)
    max_step_s: float = 0.25
    min_chunk_tokens: int = 64
    max_chunk_tokens: int = 512
    ageing: float = AGEING

    def limits(self) -> PrefillLimits:
        return PrefillLimits(
            self.max_step_s,
            self.min_chunk_tokens,
            self.max_chunk_tokens,
            self.ageing,
        )
