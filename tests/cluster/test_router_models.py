"""Two models behind one router: each has its own workers, tokenizer, limits and door."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.errors import InvalidArgument, Overloaded, UnknownModel
from tests.checkpoints import make_checkpoint
from tests.cluster.watching import eventually, router_load, settled

LONG: dict[str, Any] = {"max_tokens": 3000, "ignore_eos": True}


@pytest.fixture(scope="module")
def two(
    checkpoint: Path, temporary_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    other = make_checkpoint(tmp_path_factory.mktemp("models") / "other", "qwen2", seed=1)
    cluster = LocalCluster(
        str(checkpoint),
        worker_flags={"deterministic": True, "num_blocks": 128},
        router_flags={"model": [str(checkpoint), f"second={other}"], "max_waiting": 0},
        environment={"BATON_ROUTER_ADMISSION_MAX_IN_FLIGHT_PER_POOL": "1"},
    )
    with cluster:
        cluster.add_worker(model=str(other), model_name="second", max_model_len=128)
        cluster.wait_ready()
        yield cluster


async def test_a_request_goes_to_the_model_that_it_names(two: LocalCluster) -> None:
    async with AsyncClient(two.address) as client:
        models = {model.name: model.max_model_len for model in await client.models()}
        assert models == {"small": 4096, "second": 128}
        asked = [
            await client.generate(
                "hello", model=name, max_tokens=8, temperature=0.0, ignore_eos=True
            )
            for name in ("small", "second", "small")
        ]
        assert [generation.model for generation in asked] == ["small", "second", "small"]
        assert [each.timeline.decode_worker for each in asked] == [
            "worker-0",
            "worker-1",
            "worker-0",
        ]
        assert asked[0].token_ids == asked[2].token_ids != asked[1].token_ids
        with pytest.raises(InvalidArgument):
            await client.generate("hello", model="second", max_tokens=500)
        with pytest.raises(UnknownModel, match="third"):
            await client.generate("hello", model="third")
        with pytest.raises(UnknownModel, match="must be one of"):
            await client.generate("hello")
    await settled(two.address)


async def test_one_model_that_is_full_does_not_close_the_other(two: LocalCluster) -> None:
    async with AsyncClient(two.address) as client:
        async with client.stream("hello", model="small", **LONG) as stream:
            assert await stream.receive()
            with pytest.raises(Overloaded):
                await client.generate("hello", model="small", max_tokens=1)
            assert (await client.generate("hello", model="second", max_tokens=1)).token_ids
        await eventually(
            lambda: router_load(two.address), lambda load: load.num_running_requests == 0
        )
        assert (await client.generate("hello", model="small", max_tokens=1)).token_ids
    metrics = (await _get(two.base_url.removesuffix("/v1") + "/metrics")).splitlines()
    assert 'baton_requests_in_flight{model_name="small"} 0.0' in metrics
    assert 'baton_requests_in_flight{model_name="second"} 0.0' in metrics
    await settled(two.address)


async def _get(url: str) -> str:
    answer = await asyncio.to_thread(httpx.get, url)
    return answer.raise_for_status().text
