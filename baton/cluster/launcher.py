"""Starts whatever a cluster is made of, by its name: routers as processes, workers as Ray actors.

Workers that outlived an earlier controller on a joined Ray cluster are found again by their names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton.cluster.call_pipe import Lost
from baton.cluster.controller import Running
from baton.cluster.placement import Node, Slot, place
from baton.cluster.process import Place, arguments
from baton.cluster.ray_keeper import RayKeeper
from baton.cluster.ray_types import ActorOptions, RayView
from baton.cluster.router_ports import RouterPorts
from baton.cluster.router_process import RouterProcess
from baton.cluster.spec import IMPORT_PATHS, ClusterSpec, role_of
from baton.cluster.worker_process import WorkerProcess
from baton.worker.actor import Description, Launch


@dataclass(slots=True)
class Launcher:
    """`routers`: by name. Workers wait until Ray runs."""

    spec: ClusterSpec
    place: Place
    routers: dict[str, RouterPorts]
    ray: RayKeeper
    slots: dict[str, Slot] = field(default_factory=dict)

    async def launch(self, name: str) -> Running:
        if name in self.routers:
            return self._start_router(name)
        while True:
            with contextlib.suppress(Lost):  # then again, when Ray is back
                return await self._start_worker(name)

    def _start_router(self, name: str) -> RouterProcess:
        ports = self.routers[name]
        options = {
            **self.spec.router_options,
            "host": ports.listen,
            "grpc_port": ports.grpc,
            "http_port": ports.http,
        }
        environment = {**self.place.environment, **self.spec.router_environment}
        process = replace(self.place, environment=environment).start(
            name, "router", arguments(options)
        )
        return RouterProcess(process, ports.address)

    async def _start_worker(self, name: str) -> WorkerProcess:
        options = ActorOptions(name, self.spec.name, detached=bool(self.spec.ray_address))
        view: RayView = await self.ray.call("view")
        launch = self._plan(name, view)
        description = await self._find(options, launch, view)
        if description is None:
            node_id = self.slots[name].node_id
            description = await self.ray.call("create", launch, node_id, options)
        is_local = self.slots[name].node_id == view.own_node_id
        return WorkerProcess(self.ray, options, description, is_local)

    async def _find(
        self, options: ActorOptions, wanted: Launch, view: RayView
    ) -> Description | None:
        """The actor that an earlier controller left under this name, if it is told what we would tell
        it; another one is ended."""
        description: Description | None = await self.ray.call("find", options)
        if description is None:
            return None
        launch = description.launch
        if _without_place(launch.config) != _without_place(wanted.config):
            await self.ray.call("kill", options)
            return None
        address = launch.config.host.host
        for node in view.nodes:
            if node.address == address:
                self.slots[options.name] = Slot(node.node_id, address, launch.cores)
        return description

    def _plan(self, name: str, view: RayView) -> Launch:
        names = sorted({*self.spec.worker_names, name})
        demands = [self.spec.demand_of(each) for each in names]
        self.slots = place(demands, view.nodes, _renewed(self.slots, view.nodes))
        slot, config = self.slots[name], self.spec.config_of(name)
        engine = config.host.engine
        engine = replace(
            engine,
            num_threads=engine.num_threads or len(slot.cores),
            device=engine.device if slot.gpu is None else f"cuda:{slot.gpu}",
        )
        host = replace(
            config.host,
            worker_id=name,
            host=slot.address,
            routers=tuple(each.address for each in self.routers.values()),
            engine=engine,
        )
        return Launch(
            IMPORT_PATHS[role_of(name)],
            replace(config, host=host),
            slot.cores,
            next(node.num_cores for node in view.nodes if node.node_id == slot.node_id),
            self.place.environment,
            log="" if self.spec.ray_address else str(self.place.folder / f"{name}.log"),
        )


def _renewed(slots: Mapping[str, Slot], nodes: Sequence[Node]) -> dict[str, Slot]:
    """A Ray that was started again has other ids for the same nodes: slots stay where they are."""
    ids = {node.node_id for node in nodes}
    by_address = {node.address: node.node_id for node in reversed(nodes)}
    return {
        name: slot
        if slot.node_id in ids
        else replace(slot, node_id=by_address.get(slot.address, slot.node_id))
        for name, slot in slots.items()
    }


def _without_place(config: Any) -> Any:
    engine = replace(config.host.engine, num_threads=0, device="")
    return replace(config, host=replace(config.host, host="", engine=engine))
