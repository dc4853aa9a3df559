"""Which node, cores and GPU each worker gets. Pure: no Ray, no clock.

Prefill and decode do not share a core while there is one for each: a prefill step keeps its cores busy
for a quarter of a second, which a decode step on the same core would wait for. Within a role, workers
share where there are more workers than cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from baton.errors import ConfigError
from baton.types import Role


@dataclass(frozen=True, slots=True)
class Node:
    """`num_cores`: cores that processes there may use; a slot's core numbers count among these."""

    node_id: str
    address: str
    num_cores: int
    num_gpus: int = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """What a worker asks for. `num_cores` 0: its fair share of a node."""

    name: str
    role: Role
    num_cores: int = 0
    needs_gpu: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a worker runs. `cores`: indices in [0, the node's num_cores). `gpu`: of the node."""

    node_id: str
    address: str
    cores: tuple[int, ...]
    gpu: int | None = None


@dataclass(frozen=True, slots=True)
class _Placed:
    role: Role
    slot: Slot


def place(
    demands: Sequence[Demand], nodes: Sequence[Node], kept: Mapping[str, Slot]
) -> dict[str, Slot]:
    """A slot for every demand. Those in `kept` whose node is still there keep theirs; the others are
    placed, the roles in turn, where least runs. Raises ConfigError where no node will do."""
    usable = {node.node_id for node in nodes}
    slots = {
        demand.name: kept[demand.name]
        for demand in demands
        if demand.name in kept and kept[demand.name].node_id in usable
    }
    placed = [_Placed(d.role, slots[d.name]) for d in demands if d.name in slots]
    for demand in _roles_in_turn(d for d in demands if d.name not in slots):
        node = _choose_node(demand, nodes, placed)
        share = max(1, node.num_cores // -(-len(demands) // len(nodes)))
        here = [each for each in placed if each.slot.node_id == node.node_id]
        slot = Slot(
            node.node_id,
            node.address,
            _choose_cores(demand, node, here, min(demand.num_cores or share, node.num_cores)),
            _choose_gpu(node, here) if demand.needs_gpu else None,
        )
        slots[demand.name] = slot
        placed.append(_Placed(demand.role, slot))
    return slots


def _roles_in_turn(demands: Iterable[Demand]) -> list[Demand]:
    """P, D, P, D, ...: placed one role after the other, the first would take every core."""
    rank: dict[Role, int] = {}
    order = []
    for demand in demands:
        rank[demand.role] = rank.get(demand.role, -1) + 1
        order.append((rank[demand.role], demand.role, demand))
    return [demand for _, _, demand in sorted(order, key=lambda entry: entry[:2])]


def _choose_node(demand: Demand, nodes: Sequence[Node], placed: Sequence[_Placed]) -> Node:
    fitting = [node for node in nodes if node.num_gpus or not demand.needs_gpu]
    if not fitting:
        what = "a GPU" if demand.needs_gpu else "a CPU"
        raise ConfigError(f"no node of the Ray cluster has {what} for it", field=demand.name)

    def load(node: Node) -> float:
        here = [each.slot for each in placed if each.slot.node_id == node.node_id]
        if demand.needs_gpu:
            return len(here) / node.num_gpus
        return sum(len(slot.cores) for slot in here) / node.num_cores

    return min(fitting, key=load)


def _choose_cores(
    demand: Demand, node: Node, here: Sequence[_Placed], num_cores: int
) -> tuple[int, ...]:
    """Cores with nothing of the other role first, then those with least of the own."""

    def users(core: int) -> tuple[int, int, int]:
        roles = [each.role for each in here if core in each.slot.cores]
        own = roles.count(demand.role)
        return len(roles) - own, own, core

    return tuple(sorted(sorted(range(node.num_cores), key=users)[:num_cores]))


def _choose_gpu(node: Node, here: Sequence[_Placed]) -> int:
    used = [each.slot.gpu for each in here]
    return min(range(node.num_gpus), key=lambda gpu: (used.count(gpu), gpu))
