"""Two sets of weights under one model's name: no answer mixes them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.errors import WeightsGone
from baton.types import PoolId, Role, WorkerInfo
from router.models import Models
from router.request import GenerateInput
from router.request_life import RequestLife
from router.routing.chooser import Chooser
from router.routing.index import BlockIndex
from router.routing.policy import PolicySettings
from router.routing.pools import Pool, Pools
from router.weights_choice import WeightsChoice
from router.workers.decode_stream import LegUpdate, Row
from tests.unit.lives import FINGERPRINT, PARAMS, make_worker

OLD, NEW = replace(FINGERPRINT, identity="old"), replace(FINGERPRINT, identity="new")


def anybody(pool: Pool) -> bool:
    return True


class Routers:
    """Two old decode workers, a new one, and a new prefill worker that computes everything at once."""

    def __init__(self, *, mixes: bool = False) -> None:
        self.pools = Pools()
        settings = PolicySettings(interference=5.0)  # prompts go elsewhere where they can
        chooser = Chooser(self.pools, BlockIndex(), settings)
        self.models = Models({}, self.pools)
        self.choice = WeightsChoice(self.models, chooser, mixes=mixes)
        for name in ("old-0", "old-1"):
            self.add(replace(make_worker(name), fingerprint=OLD))
        self.add(replace(make_worker("new-0"), fingerprint=NEW))
        self.add(replace(make_worker("new-p"), fingerprint=NEW, role=Role.PREFILL))

    def add(self, worker: WorkerInfo) -> None:
        self.pools.put(worker)

    def begin(self, weights: str = "") -> RequestLife:
        prompt = tuple(range(1000))
        life = RequestLife.begin(
            "r",
            GenerateInput(prompt, weights=weights),
            self.models.get("m"),
            PARAMS,
            prompt,
            {"received": 0.0},
        )
        self.choice.begin(life, anybody, 0.0)
        return life

    def route(self, life: RequestLife) -> tuple[str, str] | None:
        """The workers that decode and compute the prompt."""
        choice = self.choice.choose(life, anybody, 0.0)
        return (choice.decode.id.worker_id, choice.computing.id.worker_id) if choice else None


def produce(life: RequestLife) -> None:
    life.take(LegUpdate([Row(0, 7, None)]))


def test_prompts_are_computed_by_workers_with_the_weights_that_go_on() -> None:
    routers = Routers()
    assert routers.route(routers.begin("new")) == ("new-0", "new-p")
    decode, computing = routers.route(routers.begin("old")) or ("", "")
    assert decode == computing != "new-p"


def test_blocks_of_one_set_are_no_hits_for_the_other() -> None:
    routers = Routers()
    old, new = routers.begin("old"), routers.begin("new")
    assert not set(old.block_ids()) & set(new.block_ids())


def test_an_answer_that_has_begun_stays_with_its_weights() -> None:
    routers = Routers()
    life = routers.begin("old")
    produce(life)
    routers.pools.remove("old-0")
    assert routers.route(life) == ("old-1", "old-1")
    routers.pools.remove("old-1")
    assert routers.route(life) is None
    assert routers.choice.are_gone(life)
    assert life.fingerprint == OLD
    routers.add(replace(make_worker("old-2"), fingerprint=OLD))
    assert routers.route(life) == ("old-2", "old-2")


def test_before_its_first_token_any_weights_will_do() -> None:
    routers = Routers()
    life = routers.begin()
    for worker_id in ("old-0", "old-1"):
        routers.pools.remove(worker_id)
    assert routers.route(life) == ("new-0", "new-p")
    assert life.admitted().weights == "new"
    produce(life)
    routers.pools.remove("new-0")
    routers.add(replace(make_worker("old-0"), fingerprint=OLD))
    assert routers.route(life) is None


def test_requests_begin_where_they_are_served_first() -> None:
    """Both sets serve while one takes the place of the other."""
    routers = Routers()
    busy = routers.pools.get(PoolId("new-0"))
    assert busy is not None
    assert routers.begin().fingerprint == NEW, "whose prompts a worker of its own computes"
    for _ in range(400):
        busy.step_s = 0.02
        busy.begin()
    assert routers.begin().fingerprint == OLD


def test_a_continuation_is_refused_where_nobody_has_its_weights() -> None:
    routers = Routers()
    with pytest.raises(WeightsGone, match="lost"):
        routers.begin("lost")


def test_others_go_on_where_that_is_configured() -> None:
    routers = Routers(mixes=True)
    routers.begin("lost")
    life = routers.begin("old")
    produce(life)
    for worker_id in ("old-0", "old-1"):
        routers.pools.remove(worker_id)
    assert routers.route(life) == ("new-0", "new-p")
