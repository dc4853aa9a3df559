"""Which models a router serves, as workers come and go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest

from baton.errors import Unavailable, UnknownModel
from baton.types import Role
from router.models import Models
from router.routing.pools import Pool, Pools
from tests.unit.lives import make_worker


class WatchedPools(Pools):
    num_scans = 0

    def of(self, role: Role, model: str) -> Collection[Pool]:
        self.num_scans += 1
        return super().of(role, model)


def test_a_look_up_looks_at_the_pools_only_after_a_worker_changed() -> None:
    pools = WatchedPools()
    models = Models({}, pools)
    for number in range(50):
        pools.put(make_worker(f"d-{number}"))
    first = models.get("m")
    num_scans = pools.num_scans
    pools.put(make_worker("d-0"), draining=True)  # as every report does
    assert models.get("") is models.get("m") is first
    assert [card.name for card in models.cards()] == models.names() == ["m"]
    assert pools.num_scans == num_scans


def test_it_knows_of_every_change_at_once() -> None:
    pools = Pools()
    models = Models({}, pools)
    with pytest.raises(Unavailable):
        models.get("m")
    pools.put(make_worker("d-0"))
    with pytest.raises(UnknownModel):
        models.get("n")
    assert models.get("m").limits.max_model_len == 4096
    pools.put(replace(make_worker("d-1"), max_model_len=100))
    assert models.get("m").limits.max_model_len == 100
    pools.put(replace(make_worker("d-1"), incarnation=2, max_model_len=200))
    assert models.get("m").limits.max_model_len == 200
    pools.remove("d-1")
    assert models.get("m").limits.max_model_len == 4096
    pools.put(replace(make_worker("d-2"), model="other"))
    with pytest.raises(UnknownModel, match="must be one of"):
        models.get("")
    pools.remove("d-0")
    assert models.get("").name == "other"


def test_a_prefill_worker_alone_serves_no_model() -> None:
    pools = Pools()
    pools.put(replace(make_worker("p-0"), role=Role.PREFILL))
    assert Models({}, pools).names() == []


def test_a_configured_model_without_a_worker_is_unavailable() -> None:
    pools = Pools()
    models = Models({"m": None}, pools)  # type: ignore[dict-item]
    with pytest.raises(Unavailable):
        models.get("m")
    assert models.cards() == []
