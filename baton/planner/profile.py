"""How long the steps of an engine take, as the simulator needs it. Pure; where the numbers come from is not
known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.prefill_cost import PrefillCost


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """A decode step in seconds, by the number of streams, by the tokens in their contexts, and by the share
    of the pool's blocks that are in use."""

    fixed_s: float
    per_stream_s: float = 0.0
    per_token_s: float = 0.0
    per_used_s: float = 0.0
    per_used_squared_s: float = 0.0

    def step_s(self, num_streams: int, num_tokens: int, used: float) -> float:
        by_use_s = (self.per_used_squared_s * used + self.per_used_s) * used
        return (
            self.fixed_s
            + self.per_stream_s * num_streams
            + self.per_token_s * num_tokens
            + by_use_s
        )


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """`prefill.step_tokens` is the most that one step takes. KV of 0 bytes takes no time to move."""

    name: str
    prefill: PrefillCost
    decode: DecodeCost
    kv_bytes_per_token: float = 0.0
    transfer_bytes_per_s: float = field(default=1e10)
    num_layers: int = 1
    hand_off_s: float = 0.0

    def exposed_s(self, num_moved_tokens: int, compute_s: float) -> float:
        """What a request waits after its prefill for KV of `num_moved_tokens` and for the hand-off."""
        transfer_s = num_moved_tokens * self.kv_bytes_per_token / self.transfer_bytes_per_s
        return self.hand_off_s + max(transfer_s / self.num_layers, transfer_s - compute_s)


# Dynamo's simulated engine, with which the figures of other routers were made.
MOCKER = EngineProfile(
    "mocker",
    PrefillCost(4.209989e-10, 1.518344e-05, 16.50142e-03, step_tokens=8192),
    DecodeCost(5.74e-03, per_used_s=54.01e-03, per_used_squared_s=-25.74e-03),
)
