"""A cluster under Ray: what `baton up` runs, and what demo, benchmarks and tests start.

    this process: controller ---- processes: routers
                       \\--- Ray: actors, each a process: prefill workers, decode workers

It starts routers while Ray starts, and on its way out leaves nothing: no process, no folder.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

from baton.errors import ConfigError, Unavailable
from cluster import private_ray, probe, router_ports, worker_actor
from cluster.controller import Controller
from cluster.folder import ClusterFolder
from cluster.launcher import Launcher
from cluster.loop_thread import LoopThread
from cluster.process import Place, log_tail
from cluster.reconcile import Instance, Limits, Phase
from cluster.router_ports import RouterPorts
from cluster.spec import ClusterSpec

_POLL_S = 0.05


@dataclass(slots=True)
class RayCluster:
    """A context manager: inside it the cluster serves. To be used on a thread that outlives it, since Ray's
    processes end with the thread that started them. `tell` gets one line of progress at a time."""

    spec: ClusterSpec
    environment: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda _line: None
    limits: Limits = field(default_factory=Limits)
    start_timeout_s: float = 120.0
    stop_grace_s: float = 10.0
    hurry: threading.Event = field(default_factory=threading.Event)  # set: stop without draining
    _folder: ClusterFolder | None = None
    _loop: LoopThread | None = None
    _launcher: Launcher | None = None
    _controller: Controller | None = None
    _controlling: Future[None] | None = None

    # Where it is

    @property
    def addresses(self) -> list[str]:
        """host:port of every router's gRPC."""
        return [ports.address for ports in self._routers.values()]

    @property
    def address(self) -> str:
        """host:port of the first router's gRPC."""
        return self.addresses[0]

    @property
    def base_url(self) -> str:
        """Of the first router's OpenAI-compatible API."""
        return next(iter(self._routers.values())).base_url

    @property
    def pids(self) -> Mapping[str, int]:
        """Of the routers and workers that run now, by name."""
        assert self._controller is not None
        return self._controller.pids()

    @property
    def worker_pids(self) -> Mapping[str, int]:
        return {name: pid for name, pid in self.pids.items() if name not in self._routers}

    @property
    def known(self) -> Mapping[str, Instance]:
        """What the controller knows of each."""
        assert self._controller is not None
        return dict(self._controller.known)

    def logs(self) -> str:
        """The ends of all logs in the cluster's folder."""
        assert self._folder is not None
        files = sorted(self._folder.path.glob("*.log"))
        return "\n".join(f"--- {file.stem}\n{log_tail(file)}" for file in files)

    # What can be done to it

    def kill_worker(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to the process of a router or worker of this machine."""
        os.kill(self.pids[name], number)

    def scale(
        self, *, num_prefill_workers: int | None = None, num_decode_workers: int | None = None
    ) -> None:
        """Changes what is wanted; see `wait_ready`. Workers with the highest numbers leave first."""
        spec = self.spec
        if num_prefill_workers is not None:
            spec = replace(spec, num_prefill_workers=num_prefill_workers)
        if num_decode_workers is not None:
            spec = replace(spec, num_decode_workers=num_decode_workers)
        self.spec = spec
        assert self._launcher is not None
        self._launcher.spec = self.spec
        self._want(self._wanted)

    def wait_ready(self) -> None:
        """Until exactly what is wanted runs, and every router knows every worker. Raises Unavailable,
        with the logs, where that takes longer than `start_timeout_s`."""
        for _ in self._until_ready(self._wanted):
            pass

    def check(self) -> None:
        """Raises what broke the controller, if something did."""
        if self._controlling is not None and self._controlling.done():
            self._controlling.result()

    # Its life

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Routers finish what they serve, then workers leave, then Ray ends. What does not leave within
        `stop_grace_s`, or once `hurry` is set, is killed."""
        if self._controller is not None and self._loop is not None:
            self._controller.restarts = False  # whatever else was told to leave at the same time
            self._let_leave()
            for pid in self.pids.values():
                os.kill(pid, signal.SIGKILL)
        if self._loop is not None:
            if self._controlling is not None:
                self._controlling.cancel()
            self._loop.close()
            self._loop = None
        private_ray.stop()
        if self._folder is not None:
            self._folder.clean()
            self._folder = None

    def _start(self) -> None:
        joined = bool(self.spec.ray_address)
        self._folder = ClusterFolder()
        marked = {**self.environment, **self._folder.environment}
        node = ""
        if joined:
            private_ray.join(self.spec.ray_address)
            node = private_ray.own_address()
        self._loop = LoopThread("controller")
        self._launcher = Launcher(
            self.spec,
            Place(self._folder.path, marked),
            router_ports.choose(self.spec.router, self.spec.router_names, node),
        )
        limits = replace(self.limits, drain_s=max(self.limits.drain_s, self.spec.longest_leave_s))
        self._controller = Controller(self._launcher.launch, limits, self.tell)
        self._want(self.spec.router_names)
        self._controlling = self._loop.submit(self._controller.run())
        if not joined:
            private_ray.start(self._folder.path, marked)
        self._loop.loop.call_soon_threadsafe(self._launcher.ray_is_up.set)
        found = worker_actor.existing(self.spec.name) if joined else []
        self._wait_first_start({*self._wanted, *found})  # all are taken over, then some drain
        self._controller.restarts = True
        self._want(self._wanted)

    def _wait_first_start(self, names: Collection[str]) -> None:
        """Raises why one of them cannot start."""
        assert self._folder is not None
        self._want(names)
        for _ in self._until_ready(names):
            for name, instance in self.known.items():
                if instance.phase is Phase.ENDED:
                    if isinstance(instance.error, ConfigError):
                        raise instance.error
                    tail = log_tail(self._folder.path / f"{name}.log")
                    raise Unavailable(f"{name} did not start: {instance.error}\n{tail}")

    def _until_ready(self, names: Collection[str]) -> Iterator[None]:
        """Comes by, again and again, until exactly these run and every router knows every worker."""
        give_up_s = time.monotonic() + self.start_timeout_s
        while not self._are_ready(names):
            self.check()
            yield
            if time.monotonic() > give_up_s:
                raise Unavailable(f"not up within {self.start_timeout_s:g} s\n{self.logs()}")
            time.sleep(_POLL_S)

    @property
    def _wanted(self) -> Sequence[str]:
        return (*self.spec.router_names, *self.spec.worker_names)

    @property
    def _routers(self) -> Mapping[str, RouterPorts]:
        assert self._launcher is not None
        return self._launcher.routers

    def _want(self, names: Iterable[str]) -> None:
        assert self._loop is not None
        assert self._controller is not None
        self._loop.loop.call_soon_threadsafe(self._controller.want, names)

    def _are_ready(self, names: Collection[str]) -> bool:
        known = self.known
        if set(known) != set(names) or any(
            each.phase is not Phase.RUNNING for each in known.values()
        ):
            return False
        assert self._loop is not None
        asking = [self._loop.submit(probe.members(address)) for address in self.addresses]
        pids = dict(self.worker_pids)
        for members in (each.result() for each in asking):
            if members is None or {m.info.worker_id: m.info.pid for m in members} != pids:
                return False
            if not all(member.connected for member in members):
                return False
        return True

    def _let_leave(self) -> None:
        """Routers first: what they serve needs the workers."""
        assert self._loop is not None
        assert self._controller is not None
        give_up_s = time.monotonic() + self.stop_grace_s
        for names in (self.spec.worker_names, ()):
            self._want(names)
            while set(self.known) - set(names):
                if time.monotonic() > give_up_s or self.hurry.is_set():
                    return
                if self._controlling is None or self._controlling.done():
                    return
                time.sleep(_POLL_S)
