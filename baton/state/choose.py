"""From the `state` of a configuration to the store that it names."""

from __future__ import annotations

from baton.config import Times
from baton.errors import ConfigError
from baton.state.base import ClusterState
from baton.state.embedded import EmbeddedState

EMBEDDED = "embedded"
_REDIS = ("redis://", "rediss://", "unix://")


def is_redis(state: str) -> bool:
    """Raises ConfigError where `state` is neither "embedded" nor the URL of a Redis."""
    if state != EMBEDDED and not state.startswith(_REDIS):
        raise ConfigError(
            f"must be {EMBEDDED!r} or redis://host:port/db, not {state!r}", field="state"
        )
    return state != EMBEDDED


def open_state(state: str, times: Times) -> ClusterState:
    if not is_redis(state):
        return EmbeddedState(times)
    from baton.state.redis import RedisState  # takes 200 ms that an embedded state has no use for

    return RedisState(state, times)
