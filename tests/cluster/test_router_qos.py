"""Quality of service through a real router: whose turn it is, who is told to come back, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.errors import DeadlineExceeded, Overloaded
from tests.cluster.watching import eventually, explained, router_load, settled

MAX_WAITING = 4


@pytest.fixture(scope="module")
def one_at_a_time(checkpoint: Path, temporary_folder: Path) -> Iterator[LocalCluster]:
    with LocalCluster(
        str(checkpoint),
        worker_flags={"num_blocks": 256},
        router_flags={"max_waiting": MAX_WAITING},
        environment={"BATON_ROUTER_ADMISSION_MAX_IN_FLIGHT_PER_POOL": "1"},
    ) as cluster:
        yield cluster


async def waiting(cluster: LocalCluster, num_requests: int) -> None:
    await eventually(
        lambda: router_load(cluster.address),
        lambda load: load.num_waiting_requests == num_requests,
    )


async def test_classes_share_deadlines_order_and_the_lowest_is_shed(
    one_at_a_time: LocalCluster,
) -> None:
    order: list[str] = []

    async def ask(name: str, **options: Any) -> None:
        try:
            await client.generate("hello", max_tokens=1, **options)
        except Overloaded as error:
            order.append(f"{name} refused" if error.retry_after_s > 0 else "without a time")
        else:
            order.append(name)

    with explained(one_at_a_time):
        async with AsyncClient(one_at_a_time.address) as client:
            async with client.stream("hello", max_tokens=3000, ignore_eos=True) as running:
                assert await running.receive()
                tasks = []
                asked: list[tuple[str, dict[str, Any]]] = [
                    ("low", {"priority": -1}),
                    ("late", {"timeout_s": 300.0}),
                    ("soon", {"timeout_s": 200.0}),
                    ("high", {"priority": 2}),
                    ("urgent", {"priority": 2, "timeout_s": 250.0}),
                ]
                for number, (name, options) in enumerate(asked, start=1):
                    tasks.append(asyncio.create_task(ask(name, **options)))
                    await waiting(one_at_a_time, min(number, MAX_WAITING))
                await eventually(_returns(order), lambda seen: seen == ["low refused"])
            await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert set(order) == {"low refused", "late", "soon", "high", "urgent"}
        assert order.index("urgent") < order.index("high")  # of one class, by deadline
        assert order.index("soon") < order.index("late")
        assert order.index("urgent") < order.index("soon")  # the higher class begins
        await settled(one_at_a_time.address)


def _returns(seen: list[str]) -> Any:
    async def look() -> list[str]:
        return list(seen)

    return look


async def test_a_deadline_that_cannot_be_met_is_refused_before_any_work(
    one_at_a_time: LocalCluster,
) -> None:
    """The worker has measured how fast it is; ten thousand times as much does not fit a millisecond."""
    with explained(one_at_a_time):
        async with AsyncClient(one_at_a_time.address) as client:
            await client.generate([7] * 1500, max_tokens=2, ignore_eos=True)
            with pytest.raises(Overloaded, match="after the deadline") as refused:
                # Not cached: other tokens. The deadline outlasts the way to the router.
                await _refused_before(client, [9] * 3500)
            assert refused.value.retry_after_s > 0
        await settled(one_at_a_time.address)


async def _refused_before(client: AsyncClient, prompt: list[int]) -> None:
    """Shorter and shorter deadlines: some are met, then one is refused by prediction."""
    timeout_s = 2.0
    for salt in range(12):
        with suppress(DeadlineExceeded):  # it was foreseen to be just in time
            await client.generate([salt, *prompt], max_tokens=1, timeout_s=timeout_s)
        timeout_s /= 1.6
