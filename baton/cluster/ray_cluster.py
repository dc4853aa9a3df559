"""A cluster under Ray: what `baton up` runs, and what demo, benchmarks and tests start.

    this process: controller ---- processes: routers
                       \\--- Ray: actors, each a process: prefill workers, decode workers

It starts routers while Ray starts, and on its way out leaves nothing: no process, no folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Self

from baton.cluster import probe, router_ports
from baton.cluster.call_pipe import Lost
from baton.cluster.controller import Controller
from baton.cluster.folder import ClusterFolder
from baton.cluster.launcher import Launcher
from baton.cluster.loading import Loading
from baton.cluster.loop_thread import LoopThread
from baton.cluster.process import Place, log_tail
from baton.cluster.ray_keeper import RayKeeper
from baton.cluster.ray_types import RayView
from baton.cluster.reconcile import Instance, Limits, Phase
from baton.cluster.router_ports import RouterPorts
from baton.cluster.spec import ClusterSpec
from baton.cluster.waiting import Seen, Teller, missing, summed_up
from baton.errors import ConfigError, Unavailable

_POLL_S = 0.05


@dataclass(slots=True)
class RayCluster:
    """A context manager: inside it the cluster serves. To be used on a thread that outlives it, since Ray's
    processes end with the thread that started them. `tell` gets one line of progress at a time. `limits`
    leave whoever is told to go at least the time that the configuration gives it."""

    spec: ClusterSpec
    environment: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = lambda _line: None
    limits: Limits = field(default_factory=Limits)
    start_timeout_s: float = 120.0
    hurry: threading.Event = field(default_factory=threading.Event)  # set: stop without draining
    _folder: ClusterFolder | None = None
    _loop: LoopThread | None = None
    _ray: RayKeeper | None = None
    _launcher: Launcher | None = None
    _controller: Controller | None = None
    _controlling: Future[None] | None = None
    _keeping: Future[None] | None = None

    def __post_init__(self) -> None:
        drain_s = max(self.limits.drain_s, self.spec.longest_leave_s)
        self.limits = replace(self.limits, drain_s=drain_s)

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
        for each in (self._controlling, self._keeping):
            if each is not None and each.done():
                each.result()

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
        """Routers finish what they serve, then workers leave, then Ray ends. What does not leave in its time
        (`limits`), or once `hurry` is set, is killed."""
        with contextlib.ExitStack() as last:
            if self._folder is not None:
                last.callback(self._folder.clean)
            if self._ray is not None:
                last.callback(self._ray.close)
            if self._loop is not None:
                last.callback(self._loop.close)
            if self._controller is not None and self._loop is not None:
                self._controller.restarts = (
                    False  # whatever else was told to leave at the same time
                )
                self._let_leave()
                self._loop.submit(self._controller.kill_all()).result()
        self._folder = self._ray = self._loop = None

    def _start(self) -> None:
        self._folder = ClusterFolder()
        marked = {**self.environment, **self._folder.environment}
        self._loop = LoopThread("controller")
        self._ray = RayKeeper(self.spec.ray_address, self._folder.path, marked, self.tell)
        self._keeping = self._loop.submit(self._ray.run())
        joined = self._joined_view() if self.spec.ray_address else None
        self._launcher = Launcher(
            self.spec,
            Place(self._folder.path, marked),
            router_ports.choose(
                self.spec.router, self.spec.router_names, joined.own_address if joined else ""
            ),
            self._ray,
        )
        self._controller = Controller(self._launcher.launch, self.limits, self.tell)
        self._want(self.spec.router_names)
        self._controlling = self._loop.submit(self._controller.run())
        self._ray.is_up.result()
        found = self._ask_ray("existing", self.spec.name) if joined else []
        self._wait_first_start(
            tuple(dict.fromkeys((*self._wanted, *found)))
        )  # all are taken over, then some drain
        self._controller.restarts = True
        self._want(self._wanted)

    def _joined_view(self) -> RayView:
        """Of the Ray that was joined; raises why none can be."""
        assert self._ray is not None
        self._ray.is_up.result()
        view: RayView = self._ask_ray("view")
        if not view.nodes:
            raise ConfigError(
                "no node of this Ray cluster has a CPU for workers", field="ray_address"
            )
        self.tell(f"joined Ray: {len(view.nodes)} nodes with CPUs, this one is {view.own_address}")
        return view

    def _ask_ray(self, method: str, *arguments: object) -> Any:
        assert self._loop is not None
        assert self._ray is not None
        try:
            return self._loop.submit(self._ray.call(method, *arguments)).result()
        except Lost as error:
            raise Unavailable("Ray ended") from error

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
        assert self._folder is not None
        loading = Loading(self._folder.path)
        now_s = time.monotonic()
        give_up_s, teller = now_s + self.start_timeout_s, Teller(now_s)
        while waits_for := list(missing(names, self._seen())):
            self.check()
            for progress in loading.news(self.known):
                self.tell(progress)
            yield
            now_s = time.monotonic()
            if now_s > give_up_s:
                raise Unavailable(
                    f"not up within {self.start_timeout_s:g} s: still waiting for "
                    f"{summed_up(waits_for)}\n{self.logs()}"
                )
            if line := teller.line(waits_for, now_s):
                self.tell(line)
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

    def _seen(self) -> Seen:
        """Routers are asked once all else is there."""
        assert self._loop is not None
        known = self.known
        if any(each.phase is not Phase.RUNNING for each in known.values()):
            return Seen(known, {})
        asked = {each: self._loop.submit(probe.members(each)) for each in self.addresses}
        return Seen(known, {address: members.result() for address, members in asked.items()})

    def _let_leave(self) -> None:
        """Routers first: what they serve needs the workers."""
        assert self._loop is not None
        assert self._controller is not None
        for names in (self.spec.worker_names, ()):
            give_up_s = time.monotonic() + self.limits.drain_s
            self._want(names)
            while set(self.known) - set(names):
                if time.monotonic() > give_up_s or self.hurry.is_set():
                    return
                if self._controlling is None or self._controlling.done():
                    return
                time.sleep(_POLL_S)
