"""A router's process: the front door's faces, the dispatcher behind them, the cluster state beside."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from baton.rpc.server import Server, ServerOptions
from baton.state.base import ClusterState
from baton.state.choose import EMBEDDED, open_state
from baton.state.neighbours import NeighbourState
from baton.state.service import RegistryServicer
from baton.v1 import admin_pb2_grpc, inference_pb2_grpc, worker_pb2_grpc
from router.config import RouterConfig
from router.dispatch import Dispatcher
from router.gate import Gate
from router.grpc.request_reader import RequestReader
from router.grpc.service import AdminService, InferenceService
from router.http.app import create_app
from router.http.in_flight import InFlight
from router.http.server import HttpServer
from router.intake import Intake
from router.models import Models
from router.off_loop import OffLoop
from router.open_files import raise_limit
from router.routing.chooser import Chooser
from router.routing.index import BlockIndex
from router.routing.pools import Pools
from router.telemetry.metrics import Metrics
from router.telemetry.record import RecordedChooser, Recorder
from router.telemetry.request_log import RequestLog
from router.telemetry.traces import Traces
from router.workers.exchange import Exchange
from router.workers.fleet import Fleet

log = logging.getLogger(__name__)

# How long a thread that parses or tokenizes may keep the event loop waiting for the interpreter.
_SWITCH_INTERVAL_S = 5e-4


@dataclass(frozen=True, slots=True)
class OwnPorts:
    """Of one of several processes on the configured ports. `all_grpc`: everyone's, also this one's."""

    grpc: int
    http: int
    all_grpc: tuple[int, ...]


class Router:
    """Made on the event loop it runs on. `own`: where it shares the configured ports. `hub`: a
    connection over which it hears of the other processes; none where a store tells of them."""

    def __init__(
        self,
        config: RouterConfig,
        own: OwnPorts | None = None,
        hub: socket.socket | None = None,
    ) -> None:
        self.config = config
        self._own = own
        self.router_id = config.router_id or f"router-{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
        self._recorder: Recorder | None = None
        self._chooser = self._make_chooser()
        pools = self._chooser.pools
        self._off_loop = OffLoop(config.admission)
        self._intake = Intake(Models.load(config.model_folders(), pools), self._off_loop)
        self._state: ClusterState
        if hub is None:
            self._state = open_state(config.state, config.times)
        else:
            self._state = NeighbourState(hub, config.times)
        self._gate = Gate(config.admission)
        index = self._chooser.index
        self._fleet = Fleet(
            self._state,
            pools,
            index,
            self.router_id,
            self._gate.resize,
            config.links_per_worker,
        )
        self._has_others = hub is not None or config.state != EMBEDDED
        self._exchange = Exchange(self._state, self.router_id, pools, self._gate)
        self._metrics = Metrics(self._gate, pools)
        watchers = [self._metrics.ended]
        self._traces: Traces | None = None
        if config.otlp_endpoint:
            self._traces = Traces.over_otlp(config.otlp_endpoint, self.router_id)
            watchers.append(self._traces.ended)
        self._requests = RequestLog(config.num_logged_requests, watchers)
        self._dispatcher = Dispatcher(
            config, self._intake, self._fleet, self._chooser, self._gate, self._requests
        )
        slow_client_s = config.times.slow_client_s
        self.server = Server(
            ServerOptions(
                config.host,
                config.grpc_port,
                slow_client_s=slow_client_s,
                reuse_port=own is not None,
                own_port=None if own is None else own.grpc,
            )
        )
        self._stop = asyncio.Event()

    def _make_chooser(self) -> Chooser:
        config = self.config
        if not config.record:
            return Chooser(Pools(), BlockIndex(config.index_bytes), config.policy)
        self._recorder = Recorder(Path(config.record))
        return RecordedChooser(self._recorder, config.policy, config.index_bytes)

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then drains: what runs has `drain_grace_s` to end."""
        self._add_services()
        raise_limit()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        slow_client_s = self.config.times.slow_client_s
        async with AsyncExitStack() as stack:
            if self._recorder is not None:
                stack.enter_context(self._recorder)
            if self._traces is not None:
                stack.push_async_callback(asyncio.to_thread, self._traces.close)
            stack.callback(self._off_loop.close)
            stack.push_async_callback(self.server.stop)
            background = [self._state.run(), self._fleet.run()]
            if self._has_others:
                background.append(self._exchange.run())
            tasks = [asyncio.create_task(each) for each in background]
            stack.push_async_callback(_cancel, tasks)
            in_flight = InFlight(self.server.one_request, lambda: self.server.draining)
            http = await HttpServer.start(
                create_app(
                    self._dispatcher,
                    self._metrics.registry,
                    slow_client_s,
                    self._off_loop,
                    in_flight,
                ),
                self.config.host,
                self.config.http_port,
                own_port=None if self._own is None else self._own.http,
                slow_client_s=slow_client_s,
            )
            stack.push_async_callback(http.stop)
            stack.callback(in_flight.cut)
            await self.server.start()
            stack.push_async_callback(self.server.drain, self.config.drain_grace_s)
            await self.server.set_serving(True)
            log.info("gRPC on %s, HTTP on port %d", self.server.address, http.port)
            await self._until_signalled(tasks)

    def stop(self) -> None:
        """As a signal does."""
        self._stop.set()

    def _registries(self) -> list[str]:
        """Where a worker that calls the shared port is to register as well; the host is the one it
        called."""
        if self._own is None or self.config.state != EMBEDDED:
            return []
        return [f":{port}" for port in self._own.all_grpc]

    async def _until_signalled(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        """Returns when it is time to leave; raises what broke one of the tasks."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        stopping = asyncio.create_task(self._stop.wait(), name="signal")
        await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for task in tasks:
            if task.done():
                task.result()

    def _add_services(self) -> None:
        server = self.server
        reader = RequestReader(self._dispatcher, self._off_loop)
        server.add(
            inference_pb2_grpc.add_InferenceServicer_to_server,
            InferenceService(self._dispatcher, self._intake, reader, server.one_request),
            sessions=("Session",),
        )
        server.add_background(
            admin_pb2_grpc.add_AdminServicer_to_server,
            AdminService(self._state, self._fleet, self._dispatcher, self._gate, self._requests),
        )
        server.add_background(
            worker_pb2_grpc.add_RegistryServicer_to_server,
            RegistryServicer(self._state, self.router_id, self._registries()),
        )


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
