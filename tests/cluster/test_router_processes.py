"""Several processes behind one router's ports: workers find them all, clients notice nothing, and one
that dies is started again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from baton import AsyncClient
from baton.cluster.local import LocalCluster
from baton.cluster.process import Place, arguments, free_port
from baton.errors import Overloaded, Unavailable
from tests.cluster.watching import WITHIN_S, eventually

NUM_PROCESSES = 3


@pytest.fixture(scope="module")
def shared(checkpoint: Path, temporary_folder: Path) -> Iterator[tuple[LocalCluster, int]]:
    first_port = _free_ports(2 * NUM_PROCESSES)
    with LocalCluster(
        str(checkpoint),
        worker_flags={"num_blocks": 256},
        router_flags={
            "processes": NUM_PROCESSES,
            "process_port": first_port,
            "quota": "acme=50",
        },
    ) as cluster:
        yield cluster, first_port


def _free_ports(num_ports: int) -> int:
    """The first of so many in a row."""
    while True:
        first = free_port()
        if first + num_ports < 65536 and all(
            _is_free(first + index) for index in range(1, num_ports)
        ):
            return first


def _is_free(port: int) -> bool:
    used = {each.laddr.port for each in psutil.net_connections("tcp") if each.laddr}
    return port not in used


def own_addresses(first_port: int) -> list[str]:
    return [f"127.0.0.1:{first_port + 2 * index}" for index in range(NUM_PROCESSES)]


async def num_connected(address: str) -> int:
    """The workers that the process at `address` can use; none while it is not up."""
    try:
        async with AsyncClient(address) as client:
            return sum(worker.connected for worker in await client.workers())
    except Unavailable:
        return 0


async def is_served(address: str) -> bool:
    try:
        async with AsyncClient(address) as client:
            return bool((await client.generate("hello", max_tokens=1)).token_ids)
    except Unavailable:
        return False


async def all_connected(first_port: int) -> None:
    for address in own_addresses(first_port):
        await eventually(partial(num_connected, address), lambda seen: seen == 1)


async def test_a_worker_that_knows_the_shared_port_registers_with_every_process(
    shared: tuple[LocalCluster, int],
) -> None:
    _, first_port = shared
    await all_connected(first_port)
    for address in own_addresses(first_port):
        async with AsyncClient(address) as client:
            generation = await client.generate("hello", max_tokens=4, ignore_eos=True)
            assert len(generation.token_ids) == 4


async def test_connections_are_dealt_out_and_every_process_counts_its_own(
    shared: tuple[LocalCluster, int],
) -> None:
    cluster, first_port = shared
    await all_connected(first_port)
    for _ in range(24):  # a connection each: that all go to one process is next to impossible
        async with AsyncClient(cluster.address) as client:
            await client.generate("hello", max_tokens=1)
    ports = [first_port + 2 * index + 1 for index in range(NUM_PROCESSES)]
    counts = [await asyncio.to_thread(_num_requests, port) for port in ports]
    assert sum(counts) >= 24
    assert sum(count > 0 for count in counts) >= 2


def _num_requests(http_port: int) -> int:
    with urlopen(f"http://127.0.0.1:{http_port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        int(float(line.split()[-1])) for line in lines if line.startswith("baton_requests_total")
    )


async def test_a_quota_is_that_of_all_processes(shared: tuple[LocalCluster, int]) -> None:
    _, first_port = shared
    await all_connected(first_port)
    first, *others = own_addresses(first_port)
    async with AsyncClient(first) as client:
        # 50 tokens per second and ten seconds' worth at first: one long answer owes for a while.
        await client.generate("hello", max_tokens=900, ignore_eos=True, tenant="acme")
    for address in others:
        async with AsyncClient(address) as client:
            await eventually(partial(is_over_quota, client, "acme"), lambda over: over)
            assert not await is_over_quota(client, "other")


async def is_over_quota(client: AsyncClient, tenant: str) -> bool:
    try:
        await client.generate("hello", max_tokens=1, tenant=tenant)
    except Overloaded:
        return True
    return False


async def test_a_process_that_dies_is_started_again_and_found_again(
    shared: tuple[LocalCluster, int],
) -> None:
    cluster, first_port = shared
    await all_connected(first_port)
    (victim,) = _processes_listening(first_port)
    os.kill(victim, signal.SIGKILL)
    # A connection that the dead one had been dealt is reset, the next one goes to another.
    await eventually(partial(is_served, cluster.address), lambda served: served)
    await eventually(
        lambda: asyncio.to_thread(_processes_listening, first_port),
        lambda pids: bool(pids) and victim not in pids,
    )
    await all_connected(first_port)


def _processes_listening(port: int) -> list[int]:
    return [
        each.pid
        for each in psutil.net_connections("tcp")
        if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN and each.pid
    ]


def test_a_port_that_another_router_has_is_not_shared_with_it(
    shared: tuple[LocalCluster, int], tmp_path: Path
) -> None:
    cluster, _ = shared
    flags = {"grpc_port": cluster.grpc_port, "http_port": free_port(), "processes": 2}
    second = Place(tmp_path, {}).start("second", "router", arguments(flags))
    assert second.popen.wait(WITHIN_S) != 0
    assert f"cannot listen on 127.0.0.1:{cluster.grpc_port}" in second.log_tail()
