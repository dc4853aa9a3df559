"""Starts whatever a cluster is made of, by its name: routers as processes, workers as Ray actors.

Workers that outlived an earlier controller on a joined Ray cluster are found again by their names.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from cluster import private_ray, worker_actor
from cluster.controller import Running
from cluster.folder import ClusterFolder
from cluster.placement import Slot, place
from cluster.process import Place, arguments
from cluster.router_process import RouterProcess
from cluster.spec import IMPORT_PATHS, ClusterSpec, role_of
from cluster.worker_actor import ActorOptions, WorkerProcess
from worker.actor import Launch


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """`host`: as others reach it."""

    host: str
    grpc: int
    http: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.grpc}"


@dataclass(slots=True)
class Launcher:
    """`routers`: by name. `ray_is_up` is set once Ray runs; workers wait for it."""

    spec: ClusterSpec
    folder: ClusterFolder
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
            "grpc_port": ports.grpc,
            "http_port": ports.http,
        }
        return RouterProcess(self.place.start(name, "router", arguments(options)), ports.address)

    async def _start_worker(self, name: str) -> WorkerProcess:
        joined = bool(self.spec.ray_address)
        launch, slot = self._plan(name)
        options = ActorOptions(name, self.spec.name, detached=joined)
        actor = worker_actor.find(options) if joined else None
        if actor is not None:
            found = await worker_actor.describe(actor)
            if found.launch.config == launch.config:
                launch = found.launch
            else:
                await worker_actor.end(actor)
                actor = None
        actor = actor or worker_actor.create(launch, slot, options)
        description = await worker_actor.describe(actor)
        is_local = slot.node_id == private_ray.own_node_id()
        return WorkerProcess(actor, description, is_local)

    def _plan(self, name: str) -> tuple[Launch, Slot]:
        nodes = private_ray.nodes()
        demands = [self.spec.demand_of(each) for each in {*self.spec.worker_names, name}]
        self.slots = place(sorted(demands, key=lambda each: each.name), nodes, self.slots)
        slot = self.slots[name]
        config = self.spec.config_of(name)
        engine = replace(
            config.host.engine, num_threads=config.host.engine.num_threads or len(slot.cores)
        )
        if slot.gpu is not None:
            engine = replace(engine, device=f"cuda:{slot.gpu}")
        host = replace(
            config.host,
            worker_id=name,
            host=slot.address,
            routers=tuple(each.address for each in self.routers.values()),
            engine=engine,
        )
        joined = bool(self.spec.ray_address)
        return (
            Launch(
                IMPORT_PATHS[role_of(name)],
                replace(config, host=host),
                slot.cores,
                self.place.environment,
                log="" if joined else str(self.folder.path / f"{name}.log"),
            ),
            slot,
        )
