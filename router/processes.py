"""Several processes behind one router's ports: the kernel deals new connections out to them (SO_REUSEPORT).

    parent: holds the ports, starts processes, starts them again, ends them; tells each what the others have
      ├── process 0 ── the shared ports, and a gRPC and an HTTP port of its own
      └── process 1 ── the shared ports, and two of its own

Each is a whole router with an index of its own. With the embedded state workers register with all of them:
they call the shared port, and whoever answers names everyone's own ports; what the processes have in
flight, at their doors and spent of quotas goes through the parent. With Redis nobody need be called, and
the processes are like routers of their own. Own ports also tell operators and scrapers the processes apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess

from baton.errors import ConfigError
from baton.state.choose import EMBEDDED
from baton.state.neighbours import Hub
from router.config import RouterConfig
from router.process import OwnPorts, Router

log = logging.getLogger(__name__)

_LEAST_BACKOFF_S, _MOST_BACKOFF_S = 0.5, 10.0
_spawn = get_context("spawn")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one process is told; `prepare` is called first in it."""

    config: RouterConfig
    own: OwnPorts
    prepare: Callable[[], None]


async def run(config: RouterConfig, prepare: Callable[[], None]) -> None:
    """Until SIGTERM or SIGINT, which every process then gets. One that ends by itself is started again."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with ExitStack() as held:
        plans = _plans(config, prepare, held)
        log.info(
            "%d processes on gRPC port %d and HTTP port %d; own ports: %s",
            len(plans),
            plans[0].config.grpc_port,
            plans[0].config.http_port,
            ", ".join(f"{plan.own.grpc}/{plan.own.http}" for plan in plans),
        )
        async with Hub() as hub, asyncio.TaskGroup() as group:
            for plan in plans:
                group.create_task(_keep(plan, hub, stop))


def _plans(config: RouterConfig, prepare: Callable[[], None], held: ExitStack) -> list[Plan]:
    """One per process, whose ports stay held for as long as `held` does."""
    grpc_port = held.enter_context(_held_port(config.host, config.grpc_port, "grpc_port"))
    http_port = held.enter_context(_held_port(config.host, config.http_port, "http_port"))
    ports = [
        held.enter_context(
            _held_port(
                config.host, config.process_port and config.process_port + index, "process_port"
            )
        )
        for index in range(2 * config.processes)
    ]
    router_id = config.router_id or f"router-{socket.gethostname()}-{grpc_port}"
    config = replace(config, grpc_port=grpc_port, http_port=http_port)
    return [
        Plan(
            replace(config, router_id=f"{router_id}.{index}"),
            OwnPorts(ports[2 * index], ports[2 * index + 1], tuple(ports[::2])),
            prepare,
        )
        for index in range(config.processes)
    ]


@contextmanager
def _held_port(host: str, port: int, field: str) -> Iterator[int]:
    """A port that only processes which mean to share it can listen on; 0: any free one. Bound without
    listening, so no connection goes astray here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as unshared, socket.socket(family) as holder:
        try:
            unshared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            unshared.bind((host, port))  # fails where another router listens, sharing or not
            port = unshared.getsockname()[1]
            unshared.close()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}", field=field
            ) from error
        yield port


async def _keep(plan: Plan, hub: Hub, stop: asyncio.Event) -> None:
    """One process, again and again until it is time to stop."""
    backoff_s = _LEAST_BACKOFF_S
    while not stop.is_set():
        process = _start(plan, hub)
        ended = asyncio.create_task(_ended(process))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stop.is_set():
            await _end(process, ended, plan.config.drain_grace_s)
            return
        log.warning("%s ended with %s and is started again", process.name, process.exitcode)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff_s):
                await stop.wait()
        backoff_s = min(_MOST_BACKOFF_S, 2 * backoff_s)


def _start(plan: Plan, hub: Hub) -> BaseProcess:
    connection = hub.connect() if plan.config.state == EMBEDDED else None
    process = _spawn.Process(target=_serve, args=(plan, connection), name=plan.config.router_id)
    process.start()
    if connection is not None:
        connection.close()  # the process has it now, and its end is the connection's
    return process


async def _ended(process: BaseProcess) -> None:
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()


async def _end(process: BaseProcess, ended: asyncio.Task[None], grace_s: float) -> None:
    """It drains; what does not end then is killed."""
    process.terminate()
    done, _ = await asyncio.wait([ended], timeout=grace_s + _MOST_BACKOFF_S)
    if not done:
        log.warning("%s did not end and is killed", process.name)
        process.kill()
        await ended


def _serve(plan: Plan, hub: socket.socket | None) -> None:
    """The process."""
    plan.prepare()
    asyncio.run(_run(plan, hub))


async def _run(plan: Plan, hub: socket.socket | None) -> None:
    router = Router(plan.config, plan.own, hub)
    parent = parent_process()
    assert parent is not None
    # However the parent ends, this one drains.
    asyncio.get_running_loop().add_reader(parent.sentinel, router.stop)
    await router.run()
