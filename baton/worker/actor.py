"""A worker as a Ray actor: one process that makes itself fit for its cores, loads the model, serves.

It knows no role: which one it mounts is an import path in its `Launch`. It does not import Ray either;
whoever starts it wraps the class. Ray calls it on threads beside its main one; serving has its own
thread and event loop, so it hangs on no call and lives on when whoever started it is gone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from baton import logs
from baton.errors import BatonError, Internal
from baton.worker import cpus
from baton.worker.config import HostConfig
from baton.worker.loading import LoggedProgress

log = logging.getLogger(__name__)

_LINGER_S = 1.0  # with nobody left to end it, a worker that has served ends by itself

# Torch's pools are sized when it is imported, each by the variable of its own library.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RoleConfig(Protocol):
    @property
    def host(self) -> HostConfig: ...


@dataclass(frozen=True, slots=True)
class Launch:
    """`role`: "module:function" of `async def run(config, engine)`. `cores`: indices among the
    `num_node_cores` that its node is said to have; empty means all. `log`: a file for all that the process
    prints, empty where Ray's own logs are to have it."""

    role: str
    config: RoleConfig
    cores: tuple[int, ...] = ()
    num_node_cores: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    log: str = ""


@dataclass(frozen=True, slots=True)
class Description:
    """What a controller that finds an actor wants to know."""

    pid: int
    launch: Launch


@dataclass(frozen=True, slots=True)
class Outcome:
    """Why a worker ended: the parts of a BatonError, all empty where it left in order."""

    code: str = ""
    message: str = ""
    field: str = ""


class WorkerActor:
    """Made, described, then told to serve."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        if launch.log:
            _print_to(Path(launch.log))
        os.environ.update(launch.environment)
        host = launch.config.host
        _use_cores(host.cores or cpus.of_slot(launch.cores, launch.num_node_cores))
        num_cpus = cpus.usable_cpus()  # of which its node may be said to have more
        self._num_threads = min(host.engine.num_threads or num_cpus, num_cpus)
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self._num_threads)))
        logs.configure(launch.config.host.worker_id)
        self._lock = threading.Lock()
        self._served: Future[Outcome] | None = None

    def describe(self) -> Description:
        return Description(os.getpid(), self._launch)

    def serve(self) -> Outcome:
        """Serves, and returns when it has ended. Called again, it waits for the same end."""
        with self._lock:
            if self._served is None:
                self._served = Future()
                thread = threading.Thread(target=self._serve, args=(self._served,), name="serve")
                thread.daemon = True
                thread.start()
        return self._served.result()

    def _serve(self, served: Future[Outcome]) -> None:
        try:
            outcome = _run(self._launch.role, _with_threads(self._launch.config, self._num_threads))
        except BaseException as error:
            log.exception("the worker broke")
            outcome = Outcome(Internal.__name__.lower(), repr(error))
        served.set_result(outcome)
        time.sleep(_LINGER_S)  # for Ray to tell, and to end this process in order
        os._exit(1 if outcome.code else 0)


def _with_threads(config: Any, num_threads: int) -> Any:
    engine = replace(config.host.engine, num_threads=num_threads)
    return replace(config, host=replace(config.host, engine=engine))


def _run(role: str, config: RoleConfig) -> Outcome:
    from baton.worker.engine import LoadedEngine  # torch, which must find cores and threads set

    module, _, name = role.partition(":")
    run: Callable[[Any, LoadedEngine], Awaitable[None]] = getattr(import_module(module), name)

    async def serve() -> None:
        await run(config, engine)

    try:
        engine = LoadedEngine.load(config.host.engine, LoggedProgress())
        asyncio.run(serve())
    except BatonError as error:
        log.exception("the worker ended")
        return Outcome(error.code, error.message, error.field)
    return Outcome()


def _use_cores(cores: Sequence[int]) -> None:
    """For the threads that Ray has made already, too: the kernel's calls are for one thread each, and
    only new ones inherit."""
    if not cores:
        return
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), cores)
        except ProcessLookupError:
            continue  # the thread has ended since


def _print_to(path: Path) -> None:
    """Standard output and error of the process, whoever in it writes them."""
    with path.open("ab") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
