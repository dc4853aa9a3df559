"""A profile measured on a small model, and replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.bench.engine_profile import ProfileSettings, measure
from baton.engine.config import EngineConfig
from baton.errors import ConfigError
from baton.planner.arrival import Arrival, block_ids
from baton.planner.simulator import ClusterShape, simulate
from tests.checkpoints import make_checkpoint


def test_a_measured_engine_can_be_simulated(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    rounds: list[int] = []
    profile = measure(
        ProfileSettings(EngineConfig(folder, num_blocks=80, num_threads=1), time_limit_s=0.01),
        lambda what, done, total: rounds.append(done),
    )
    assert len(rounds) >= 2
    assert profile.prefill.step_s(512) > profile.prefill.step_s(32) > 0
    assert profile.decode.step_s(1, 64, 0.0) > 0
    assert profile.kv_bytes_per_token > 0
    arrivals = [
        Arrival(0.1 * number, 300, 10, block_ids((), 64, 300, 64, unique=number))
        for number in range(5)
    ]
    outcome = simulate(ClusterShape(1, 1, 80, 64, profile), arrivals)
    assert all(request.finished_s for request in outcome.requests)


def test_a_cache_without_room_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", "llama")
    config = EngineConfig(folder, num_blocks=1, block_size=16, num_threads=1)
    with pytest.raises(ConfigError, match="num_blocks"):
        measure(ProfileSettings(config), lambda what, done, total: None)
