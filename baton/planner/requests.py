"""A request in the simulator, and what is written down of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton.planner.arrival import Arrival
from baton.scheduling.sample import Sample


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """Instants are None until they have come. `num_cached_tokens`: of the pool that computed the prompt."""

    index: int
    arrival: Arrival
    sample: Sample | None = None  # while it holds blocks of a decode pool that computes its prompt
    decode_blocks: list[int] | None = None  # the first `num_decode_hits` were cached there
    num_decode_hits: int = 0
    num_cached_tokens: int = 0
    routed_s: float | None = None  # admitted, and given to workers
    started_s: float | None = None  # its first prefill step
    prefilled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    predicted_ttft_s: float | None = None  # from `routed_s` on
    refused: bool = False
    prefill: str = ""
    decode: str = ""
