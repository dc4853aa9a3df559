"""Placement: who shares a core with whom, on one machine and on several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.cluster.placement import Demand, Node, Slot, place
from baton.errors import ConfigError
from baton.types import Role


def demands(
    num_prefill: int, num_decode: int, *, num_cores: int = 0, needs_gpu: bool = False
) -> list[Demand]:
    prefill = [
        Demand(f"prefill-{i}", Role.PREFILL, num_cores, needs_gpu) for i in range(num_prefill)
    ]
    decode = [Demand(f"decode-{i}", Role.DECODE, num_cores, needs_gpu) for i in range(num_decode)]
    return [*prefill, *decode]


def machine(num_cores: int, node_id: str = "a", num_gpus: int = 0) -> Node:
    return Node(node_id, f"10.0.0.{ord(node_id)}", num_cores, num_gpus)


def cores(slots: dict[str, Slot]) -> dict[str, tuple[int, ...]]:
    return {name: slot.cores for name, slot in slots.items()}


def test_prefill_and_decode_get_a_core_each() -> None:
    slots = place(demands(1, 1), [machine(2)], {})
    assert cores(slots) == {"prefill-0": (0,), "decode-0": (1,)}
    assert {slot.address for slot in slots.values()} == {machine(2).address}


def test_an_aggregated_worker_gets_all_cores() -> None:
    assert cores(place(demands(0, 1), [machine(2)], {})) == {"decode-0": (0, 1)}


def test_workers_of_one_role_share_where_cores_are_few() -> None:
    assert cores(place(demands(2, 2), [machine(2)], {})) == {
        "prefill-0": (0,),
        "prefill-1": (0,),
        "decode-0": (1,),
        "decode-1": (1,),
    }


@given(num_prefill=st.integers(1, 8), num_decode=st.integers(1, 8), num_cores=st.integers(1, 16))
def test_roles_never_share_a_core_where_there_is_one_for_each(
    num_prefill: int, num_decode: int, num_cores: int
) -> None:
    slots = place(demands(num_prefill, num_decode), [machine(num_cores)], {})
    used = {
        role: {c for name, s in slots.items() if name.startswith(role) for c in s.cores}
        for role in ("prefill", "decode")
    }
    assert all(used.values())
    assert max(used["prefill"] | used["decode"]) < num_cores
    if num_cores >= 2:
        assert not used["prefill"] & used["decode"]


def test_an_asked_number_of_cores_is_given() -> None:
    slots = place(demands(1, 1, num_cores=3), [machine(8)], {})
    assert cores(slots) == {"prefill-0": (0, 1, 2), "decode-0": (3, 4, 5)}


def test_no_worker_gets_more_cores_than_its_node_has() -> None:
    assert cores(place(demands(0, 1, num_cores=64), [machine(4)], {})) == {"decode-0": (0, 1, 2, 3)}


def test_a_restarted_worker_keeps_its_cores() -> None:
    before = place(demands(1, 2), [machine(4)], {})
    kept = {name: slot for name, slot in before.items() if name != "decode-1"}
    assert place(demands(1, 2), [machine(4)], kept) == before


def test_workers_spread_over_nodes_and_leave_a_dead_one() -> None:
    nodes = [machine(4, "a"), machine(4, "b")]
    slots = place(demands(2, 2), nodes, {})
    assert sorted(slot.node_id for slot in slots.values()) == ["a", "a", "b", "b"]
    assert {slot.address for slot in slots.values()} == {node.address for node in nodes}
    after = place(demands(2, 2), nodes[:1], slots)
    assert {slot.node_id for slot in after.values()} == {"a"}
    unmoved = {name for name, slot in slots.items() if slot.node_id == "a"}
    assert all(after[name] == slots[name] for name in unmoved)


def test_each_worker_gets_its_own_gpu_while_there_are_enough() -> None:
    nodes = [machine(8, "a"), machine(8, "b", num_gpus=2), machine(8, "c", num_gpus=2)]
    slots = place(demands(2, 2, needs_gpu=True), nodes, {})
    assert len({(slot.node_id, slot.gpu) for slot in slots.values()}) == 4
    assert all(slot.gpu is not None and slot.node_id != "a" for slot in slots.values())


@pytest.mark.parametrize("nodes", [[], [machine(4)]])
def test_a_worker_that_fits_nowhere_is_named(nodes: list[Node]) -> None:
    with pytest.raises(ConfigError, match="decode-0"):
        place(demands(0, 1, needs_gpu=True), nodes, {})
