"""Equal prompts of two tenants have nothing in common, for the router's index and for a worker's cache."""

from __future__ import annotations

from baton.scheduling import sample_blocks
from baton.scheduling.block_manager import BlockManager
from baton.scheduling.sample import Sample
from baton.types import PoolId, SamplingParams
from router.request import GenerateInput
from router.request_life import RequestLife
from router.routing.index import BlockIndex
from tests.unit.lives import FINGERPRINT, PARAMS, make_life

PROMPT = tuple(range(640))
POOL = PoolId("d-0")


def life_of(tenant: str) -> RequestLife:
    request = GenerateInput(PROMPT, tenant=tenant)
    return RequestLife.begin("r", request, make_life().model, PARAMS, PROMPT, {"received": 0.0})


def test_the_index_knows_blocks_of_one_tenant_alone() -> None:
    index = BlockIndex()
    index.store(POOL, life_of("acme").block_ids())

    def num_hits(tenant: str) -> int:
        hits = index.match(life_of(tenant).block_ids(), FINGERPRINT.block_size)
        return int(hits.get(POOL, 0))

    assert num_hits("acme") == len(PROMPT)
    assert num_hits("other") == num_hits("") == 0


def test_a_workers_cache_gives_blocks_to_their_tenant_alone() -> None:
    blocks = BlockManager(100, FINGERPRINT.block_size)

    def num_cached_tokens(tenant: str) -> int:
        """Of the prompt, which is computed and then given back as cache."""
        params = SamplingParams(max_tokens=1)
        salt = life_of(tenant).salt
        sample = Sample(1, 0, params, [*PROMPT, 7], len(PROMPT), frozenset(), salt)
        assert sample_blocks.take(sample, blocks)
        sample.num_computed = len(PROMPT)
        sample_blocks.publish(sample, blocks)
        sample_blocks.give_back(sample, blocks)
        return sample.num_cached_tokens

    assert num_cached_tokens("acme") == 0
    assert num_cached_tokens("other") == num_cached_tokens("") == 0
    assert num_cached_tokens("acme") == num_cached_tokens("other") == len(PROMPT)
