"""What is said to and by the process that is Ray's client; needs no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from baton.cluster.placement import Node

# By themselves workers would end with Ray's raylet, and a minute after its control store.
OUTLIVING = {
    "RAY_raylet_death_check_interval_milliseconds": str(10**10),
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(10**9),
}


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
