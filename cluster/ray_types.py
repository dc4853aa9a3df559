"""What is said to and by the process that is Ray's client; needs no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.placement import Node


@dataclass(frozen=True, slots=True)
class RayView:
    """What a Ray cluster looks like from this machine. `nodes`: those alive that have CPUs, this one first.
    `own_address`: this node's, as others reach it."""

    own_node_id: str
    own_address: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """`detached`: lives on when its creator is gone, to be found by `name` in `namespace`."""

    name: str
    namespace: str
    detached: bool
