"""A cluster of plain processes on this machine: routers and workers, started, watched, stopped.

What `baton up` runs on one machine, and what demo, benchmarks and tests start. It knows the processes'
command lines and their gRPC faces, nothing of what is inside them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from baton import Client
from baton.cluster.process import Flags, Place, Process, arguments, free_port
from baton.errors import DeadlineExceeded, Unavailable

_POLL_S = 0.05


@dataclass(slots=True)
class LocalCluster:
    """`num_routers` routers, `num_workers` decode workers and `num_prefill_workers` prefill workers of one
    model; a context manager. Every worker registers with every router.

    `worker_flags` and `router_flags` are the options of `baton worker` and `baton router` by name. With
    `quiet` the processes log to files in `folder`, otherwise to this process's stderr as well.
    """

    model: str
    num_workers: int = 1
    num_prefill_workers: int = 0
    num_routers: int = 1
    worker_flags: Flags = field(default_factory=dict)
    router_flags: Flags = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: float = 120.0
    quiet: bool = True
    routers: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    grpc_port: int = 0  # of the first router; 0: any that is free
    http_port: int = 0
    _ports: list[tuple[int, int]] = field(default_factory=list)  # gRPC and HTTP, of every router
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def address(self) -> str:
        """host:port of the first router's gRPC."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """host:port of every router's gRPC."""
        return [f"127.0.0.1:{grpc_port}" for grpc_port, _ in self._ports]

    @property
    def base_url(self) -> str:
        """Of the OpenAI-compatible API."""
        return f"http://127.0.0.1:{self.http_port}/v1"

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="baton-")
        try:
            self.grpc_port = self.grpc_port or free_port()
            self.http_port = self.http_port or free_port()
            self._ports = [(self.grpc_port, self.http_port)]
            self._ports += [(free_port(), free_port()) for _ in range(1, self.num_routers)]
            for index in range(self.num_routers):
                self.start_router(index)
            for _ in range(self.num_workers):
                self.add_worker()
            for _ in range(self.num_prefill_workers):
                self.add_worker(role="prefill", worker_id=f"prefill-{len(self.workers)}")
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start_router(self, index: int) -> Process:
        """Starts a router, or one that has ended again, on the same ports."""
        name = "router" if index == 0 else f"router-{index}"
        process = self._start(name, "router", self._router_arguments(*self._ports[index]))
        self.routers[index : index + 1] = [process]
        return process

    def add_worker(self, **flags: object) -> Process:
        """Starts another worker; `wait_ready` waits for it."""
        given = {
            "model": self.model,
            "router": self.addresses,
            "worker_id": f"worker-{len(self.workers)}",
            **self.worker_flags,
            **flags,
        }
        process = self._start(str(given["worker_id"]), "worker", arguments(given))
        self.workers.append(process)
        return process

    def wait_ready(self) -> None:
        """Until every living worker is registered with every router. Raises Unavailable with the log of
        what failed."""
        give_up_s = time.monotonic() + self.start_timeout_s
        for address in self.addresses:
            with Client(address) as client:
                while self._num_connected(client) < max(1, sum(w.alive for w in self.workers)):
                    if time.monotonic() > give_up_s:
                        raise Unavailable(
                            f"not up within {self.start_timeout_s:g} s\n{self.logs()}"
                        )
                    time.sleep(_POLL_S)

    def processes(self) -> list[Process]:
        return [*self.workers, *self.routers]

    def logs(self) -> str:
        return "\n".join(f"--- {each.name}\n{each.log_tail()}" for each in self.processes())

    def stop(self) -> None:
        """Ends every process, workers first; they drain."""
        for process in self.workers:
            if process.alive:
                process.popen.terminate()
        for process in self.processes():
            process.stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _num_connected(self, client: Client) -> int:
        for process in self.processes():
            if not process.alive:
                code = process.popen.returncode
                raise Unavailable(f"{process.name} ended with {code}\n{process.log_tail()}")
        try:
            return sum(member.connected for member in client.workers())
        except (Unavailable, DeadlineExceeded):
            return 0  # the router is not up yet

    def _router_arguments(self, grpc_port: int, http_port: int) -> list[str]:
        has_text = (Path(self.model) / "config.json").exists()
        flags = {
            "grpc_port": grpc_port,
            "http_port": http_port,
            **({"model": self.model} if has_text else {}),
            **self.router_flags,
        }
        return arguments(flags)

    def _start(self, name: str, command: str, options: Sequence[str]) -> Process:
        assert self._folder is not None
        place = Place(Path(self._folder.name), self.environment, self.quiet)
        return place.start(name, command, options)
