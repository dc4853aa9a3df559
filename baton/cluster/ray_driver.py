"""Ray's client in a process of its own, and here and nowhere else: what Baton asks of Ray.

    python -m baton.cluster.ray_driver DESCRIPTOR

Ray aborts the process it is used in when its control store is gone for a minute, waits without a bound for
hosts that do not exist, forks with `preexec_fn` (which a process with gRPC calls under way must not), and
takes over signals. Here it does that to nobody else; who calls sees this process end, and starts another.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baton.cluster import actors
from baton.cluster.call_pipe import answer_calls
from baton.cluster.placement import Node
from baton.cluster.quiet_ray import ray
from baton.cluster.ray_address import check_reachable
from baton.cluster.ray_types import ActorOptions, RayView
from baton.errors import BatonError, ConfigError, Unavailable
from baton.worker.actor import Description, Launch, Outcome
from baton.worker.cpus import usable_cpus

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray allows; nothing of ours goes through it
_LOOK_S = 0.5
_HINT = " (one that asks for a token is joined with RAY_AUTH_MODE=token)"


class RayDriver:
    """`start` or `join` first. Every other method may be called on any thread."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}
        self._is_joined = False

    def start(self, folder: Path) -> None:
        """A Ray of our own on this machine: heard on the loopback only, without a dashboard, writing to
        `folder` only. It ends with this process, however that ends."""
        try:
            ray.init(
                "local",
                num_cpus=usable_cpus(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(folder),
                _node_ip_address=_LOOPBACK,
            )
        except (Exception, SystemExit) as error:  # Ray has no type of its own for it
            raise Unavailable(f"Ray did not start: {error}") from error

    def join(self, address: str) -> None:
        """Connects to the Ray cluster at `address` (host:port, or "auto")."""
        check_reachable(address)
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
        except (Exception, SystemExit) as error:
            hint = "" if "RAY_AUTH_MODE" in os.environ else _HINT
            raise ConfigError(
                f"no Ray cluster can be joined: {error}{hint}", field="ray_address"
            ) from error
        self._is_joined = True

    def wait_broken(self) -> str:
        """Returns why, once Ray can start no more workers from here. (Where its control store is silent for
        a minute, Ray ends this process.)"""
        own = ray.get_runtime_context().get_node_id()
        processes = ray._private.worker._global_node
        assert processes is not None
        while True:
            time.sleep(_LOOK_S)
            if self._is_joined:
                if not any(each["Alive"] for each in _entries() if each["NodeID"] == own):
                    return "it has lost this node"
            elif dead := processes.dead_processes():
                return f"its {dead[0][0]} has ended"

    def view(self) -> RayView:
        own = str(ray.get_runtime_context().get_node_id())
        nodes = [
            Node(
                entry["NodeID"],
                entry["NodeManagerAddress"],
                int(entry["Resources"].get("CPU", 0)),
                int(entry["Resources"].get("GPU", 0)),
            )
            for entry in _entries()
            if entry["Alive"]
        ]
        nodes.sort(key=lambda node: (node.node_id != own, node.node_id))
        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        return RayView(own, address, tuple(node for node in nodes if node.num_cores))

    def existing(self, namespace: str) -> list[str]:
        """Names of the detached actors of this namespace."""
        return actors.existing(namespace)

    def create(self, launch: Launch, node_id: str, options: ActorOptions) -> Description:
        """Raises Unavailable where its process does not come up."""
        actor = actors.create(launch, node_id, options)
        try:
            description = actors.describe(actor)
        except BatonError:
            ray.kill(actor)  # it might come up after all, with nobody to know it
            raise
        self._actors[options.name] = actor
        return description

    def find(self, options: ActorOptions) -> Description | None:
        """Of a living actor of this name, if there is one."""
        actor = actors.find(options)
        return None if actor is None else actors.describe(actor)

    def serve(self, options: ActorOptions) -> Outcome:
        """Tells it to serve, and returns when it has ended. Raises Unavailable where it died, or Ray knows
        none of this name."""
        return actors.serve(self._actor(options))

    def terminate(self, options: ActorOptions) -> None:
        """Its process is to leave."""
        self._actor(options).__ray_terminate__.remote()

    def kill(self, options: ActorOptions) -> None:
        """Returns when Ray says that it is dead, or after some seconds."""
        actors.end(self._actor(options))

    def _actor(self, options: ActorOptions) -> Any:
        actor = self._actors.get(options.name)
        if actor is None:
            actor = actors.find(options)
        if actor is None:
            raise Unavailable("Ray knows it no more")
        self._actors[options.name] = actor
        return actor


def _entries() -> list[Mapping[str, Any]]:
    entries: list[Mapping[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return entries


if __name__ == "__main__":
    answer_calls(Connection(int(sys.argv[1])), RayDriver())
    ray.shutdown()
    sys.stdout.flush()
    os._exit(0)  # threads that still wait for actors do not hold it up
