"""Starts whatever a cluster is made of, by its name: routers as processes, workers as Ray actors.

Workers that outlived an earlier controller on a joined Ray cluster are found again by their names.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

from cluster import private_ray, worker_actor
from cluster.controller import Running
from cluster.placement import Slot, place
from cluster.process import Place, arguments
from cluster.router_ports import RouterPorts
from cluster.router_process import RouterProcess
from cluster.spec import IMPORT_PATHS, ClusterSpec, role_of
from cluster.worker_actor import ActorOptions, WorkerProcess
from worker.actor import Launch


@dataclass(slots=True)
class Launcher:
    """`routers`: by name. `ray_is_up` is set once Ray runs; workers wait for it."""

    spec: ClusterSpec
    place: Place
    routers: dict[str, RouterPorts]
    ray_is_up: asyncio.Event = field(default_factory=asyncio.Event)
    slots: dict[str, Slot] = field(default_factory=dict)

    async def launch(self, name: str) -> Running:
        if name in self.routers:
            return self._start_router(name)
        await self.ray_is_up.wait()
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
        launch = self._plan(name)
        actor = await self._find(options, launch) if options.detached else None
        if actor is None:
            actor = worker_actor.create(launch, self.slots[name].node_id, options)
        description = await worker_actor.describe(actor)
        is_local = self.slots[name].node_id == private_ray.own_node_id()
        return WorkerProcess(actor, description, is_local)

    async def _find(self, options: ActorOptions, wanted: Launch) -> Any | None:
        """The actor that an earlier controller left under this name, if it is told what we would tell
        it; another one is ended."""
        actor = worker_actor.find(options)
        if actor is None:
            return None
        launch = (await worker_actor.describe(actor)).launch
        if _without_place(launch.config) != _without_place(wanted.config):
            await worker_actor.end(actor)
            return None
        address = launch.config.host.host
        for node in private_ray.nodes():
            if node.address == address:
                self.slots[options.name] = Slot(node.node_id, address, launch.cores)
        return actor

    def _plan(self, name: str) -> Launch:
        names = sorted({*self.spec.worker_names, name})
        demands = [self.spec.demand_of(each) for each in names]
        self.slots = place(demands, private_ray.nodes(), self.slots)
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
            self.place.environment,
            log="" if self.spec.ray_address else str(self.place.folder / f"{name}.log"),
        )


def _without_place(config: Any) -> Any:
    engine = replace(config.host.engine, num_threads=0, device="")
    return replace(config, host=replace(config.host, host="", engine=engine))
