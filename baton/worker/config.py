"""What every worker is told at start-up, whatever its role."""

from __future__ import annotations

from dataclasses import dataclass, field

from baton.config import Times, check_port
from baton.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class HostConfig:
    """`routers`: addresses of every router's gRPC port; not needed where `state` names a Redis that all
    routers read. `worker_id` and `model_name` may be empty: then the one is made up, and the other is that
    of the checkpoint's folder. `host`: to listen on; `advertise_address`: the host that others are told,
    where they reach this one by another. `cores`: the CPU cores this worker may use; empty means all.
    `transports`: of the hand-off, those that it may use; what does not work on this machine is left out."""

    worker_id: str = ""
    model_name: str = ""
    host: str = "127.0.0.1"
    advertise_address: str = ""
    port: int = 0
    routers: tuple[str, ...] = ("127.0.0.1:50051",)
    state: str = "embedded"
    cores: tuple[int, ...] = ()
    transports: tuple[str, ...] = ("cuda_ipc", "shm", "nixl", "torch_dist")
    drain_grace_s: float = 30.0
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(model=""))
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        check_port(self.port, "port")
