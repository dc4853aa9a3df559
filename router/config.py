"""What a router is told at start-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from baton.config import Times
from router.policy import PolicySettings


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """`models`: NAME=FOLDER or FOLDER each, whose tokenizer and defaults this router uses. A limit on
    requests in flight is per decode pool: the rest waits at the gate, at most `max_waiting` requests."""

    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8000
    models: tuple[str, ...] = ()
    router_id: str = ""
    max_in_flight_per_pool: int = 256
    max_waiting: int = 1024
    max_attempts: int = 4
    no_worker_wait_s: float = 10.0  # for a worker to come back before a request is given up
    drain_grace_s: float = 30.0
    num_logged_requests: int = 1000
    policy: PolicySettings = field(default_factory=PolicySettings)
    times: Times = field(default_factory=Times)

    def model_folders(self) -> Mapping[str, Path]:
        """Model name -> folder; a folder without a name is called as its last part."""
        pairs = (entry.rpartition("=") for entry in self.models)
        return {name or Path(folder).name: Path(folder) for name, _, folder in pairs}
