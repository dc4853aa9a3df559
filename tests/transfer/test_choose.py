"""Which transport a pair gets, from what both sides have; and what shared memory needs of its host."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baton.errors import ConfigError, IncompatiblePeer, PeerLost
from kv_transfer import wire_format
from kv_transfer.base import TransferId
from kv_transfer.choose import TRANSPORTS, Receivers, Senders
from kv_transfer.introduction import pack_process, unpack_process
from kv_transfer.nixl_ends import is_installed as nixl_is_installed
from kv_transfer.peer_process import PeerProcess, ProcessId, own_process_id
from kv_transfer.pool import Pool
from kv_transfer.shm import SharedMemory, ShmReceiver, ShmSender
from tests.transfer.worlds import SMALL, random_pool, send

BY_NETWORK = "nixl" if nixl_is_installed() else "torch_dist"


def receivers(*transports: str) -> Receivers:
    shared = SharedMemory(SMALL.size_bytes)
    return Receivers(Pool(SMALL, shared.memory), shared, "127.0.0.1", 2.0, transports)


@pytest.fixture
def everything() -> Iterator[Receivers]:
    made = receivers(*TRANSPORTS)
    yield made
    made.close()


def test_processes_of_one_host_share_memory(everything: Receivers) -> None:
    assert transport_of(everything, TRANSPORTS) == "shm"


def test_a_transport_is_forced_on_either_side(everything: Receivers) -> None:
    assert transport_of(everything, ["torch_dist"]) == "torch_dist"
    only = receivers("torch_dist")
    assert transport_of(only, TRANSPORTS) == "torch_dist"
    only.close()


def transport_of(offering: Receivers, known: list[str] | tuple[str, ...]) -> str:
    pool = random_pool(SMALL)
    name, link = Senders(pool, 2.0, known).connect(offering.offer())
    transfer = TransferId("one", 1)
    offering[name].open(transfer, [3])
    link.open(transfer, [3])
    assert send(link, transfer, SMALL.num_layers, [5], [3]) == [pool.checksum(5)]
    link.close()
    return name


def test_another_host_is_reached_by_network(everything: Receivers) -> None:
    offer = wire_format.unpack(everything.offer())
    elsewhere = wire_format.pack(offer | {"host_id": "another"})
    name, link = Senders(random_pool(SMALL), 2.0).connect(elsewhere)
    link.close()
    assert name == BY_NETWORK
    with pytest.raises(IncompatiblePeer, match="another host"):
        Senders(random_pool(SMALL), 2.0, ["shm"]).connect(elsewhere)


def test_memory_that_cannot_be_mapped_is_passed_over(everything: Receivers) -> None:
    everything["shm"].close()  # as for another user's process
    name, link = Senders(random_pool(SMALL), 2.0).connect(everything.offer())
    link.close()
    assert name == BY_NETWORK


def test_nothing_in_common_is_refused() -> None:
    only = receivers("shm")
    with pytest.raises(IncompatiblePeer, match="torch_dist"):
        Senders(random_pool(SMALL), 2.0, ["torch_dist"]).connect(only.offer())
    with pytest.raises(IncompatiblePeer, match="torch_dist"):
        only["torch_dist"]
    only.close()


@pytest.mark.parametrize("names", [[], ["pigeon"], ["shm", "pigeon"]])
def test_unknown_transports_are_refused_by_name(names: list[str]) -> None:
    with pytest.raises(ConfigError, match="transports"):
        Senders(random_pool(SMALL), 2.0, names)


def test_what_fails_here_is_left_out_unless_it_is_all_that_was_named() -> None:
    pool = random_pool(SMALL)  # in memory that nobody can map
    others = Receivers(pool, None, "127.0.0.1", 2.0, ["shm", "torch_dist"])
    assert transport_of(others, TRANSPORTS) == "torch_dist"
    others.close()
    with pytest.raises(ConfigError, match="shared memory"):
        Receivers(pool, None, "127.0.0.1", 2.0, ["shm"])
    with pytest.raises(ConfigError, match=r"cuda_ipc.* cpu"):
        Senders(pool, 2.0, ["cuda_ipc"])


def test_a_wrong_token_is_not_let_in() -> None:
    only = receivers("torch_dist")
    offer = wire_format.unpack(only["torch_dist"].offer()) | {"token": b"0" * 16}
    outer = {"host_id": "x", "offers": {"torch_dist": wire_format.pack(offer)}}
    with pytest.raises(PeerLost):
        Senders(random_pool(SMALL), 2.0).connect(wire_format.pack(outer))
    only.close()


def test_too_little_memory_is_told_with_the_need() -> None:
    with pytest.raises(ConfigError, match=str(1 << 50)) as refused:
        SharedMemory(1 << 50)
    assert refused.value.field == "kv_cache_bytes"


def test_another_descriptor_is_not_taken_for_the_memory() -> None:
    shared = SharedMemory(SMALL.size_bytes)
    offer = ShmReceiver(SMALL, shared).offer()
    replaced = os.dup(shared.fd)
    other = SharedMemory(SMALL.size_bytes)
    os.dup2(other.fd, shared.fd)  # the number is given away again
    with pytest.raises(PeerLost, match="not the memory"):
        ShmSender(random_pool(SMALL)).connect(offer)
    os.close(replaced)
    shared.close()
    other.close()


def test_shared_memory_of_the_wrong_size_is_refused() -> None:
    shared = SharedMemory(SMALL.size_bytes - 64)
    with pytest.raises(ConfigError, match="shared_memory"):
        ShmReceiver(SMALL, shared)
    shared.close()
    with pytest.raises(ConfigError, match="memory"):
        Pool(SMALL, torch.zeros(SMALL.size_bytes, dtype=torch.int8))


def test_a_process_is_told_from_a_later_one_with_its_pid() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
    watch = PeerProcess(ProcessId(child.pid, ticks))
    with pytest.raises(PeerLost):
        PeerProcess(ProcessId(child.pid, ticks - 1))
    assert not watch.is_dead
    child.communicate()
    assert watch.is_dead
    watch.close()
    with pytest.raises(PeerLost):
        PeerProcess(ProcessId(child.pid, ticks))


def test_a_process_introduces_itself_to_its_own_host() -> None:
    assert unpack_process(pack_process()) == own_process_id()
    told = wire_format.unpack(pack_process()) | {"host_id": "another"}
    assert unpack_process(wire_format.pack(told)) is None
