"""What a router is told at start-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from baton import model_name
from baton.config import Times, check_port
from baton.errors import ConfigError
from router.admission.admission import AdmissionSettings
from router.routing.index import MAX_BYTES
from router.routing.policy import PolicySettings
from router.routing.ring import NUM_LINKS


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """`models`: NAME=FOLDER or FOLDER each, whose tokenizer and defaults this router uses. `state`:
    "embedded", or the URL of a Redis that the routers of a cluster share. `record`: a file for all that
    its choices follow from, for `baton replay`. `processes` share both ports; each has two of its own, from
    `process_port` on, 0: any that are free. `max_attempts`: decode workers that a request is given to, in
    all. `max_prefill_attempts`: prefill workers that are asked for it; then its decode worker computes the
    prompt. `pair_retry_s`: how long a decode and a prefill worker are kept apart after a hand-off between
    them was lost. `max_suspected_deaths`: workers that may die while they compute a request, and no token of
    it comes in between; then it is ended. `links_per_worker`: prefill workers to which a decode worker opens
    links before it needs them. `index_bytes`: of memory for where blocks are.
    `otlp_endpoint`: host:port of a collector's gRPC for traces; none are made where it is empty."""

    host: str = "127.0.0.1"
    grpc_port: int = 50051
    http_port: int = 8000
    models: tuple[str, ...] = ()
    router_id: str = ""
    state: str = "embedded"
    processes: int = 1
    process_port: int = 0
    max_attempts: int = 4
    max_prefill_attempts: int = 3
    max_suspected_deaths: int = 2
    pair_retry_s: float = 10.0
    links_per_worker: int = NUM_LINKS
    no_worker_wait_s: float = 10.0  # for a worker to come back before a request is given up
    continue_on_other_weights: bool = False  # answers begun with weights that are served no more
    drain_grace_s: float = 30.0
    num_logged_requests: int = 1000
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    record: str = ""
    index_bytes: int = MAX_BYTES
    otlp_endpoint: str = ""
    policy: PolicySettings = field(default_factory=PolicySettings)
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        for name in (
            "processes",
            "max_attempts",
            "max_prefill_attempts",
            "max_suspected_deaths",
        ):
            if getattr(self, name) < 1:
                raise ConfigError("must be at least 1", field=name)
        for name in ("grpc_port", "http_port", "process_port"):
            check_port(getattr(self, name), name)
        if self.grpc_port and self.grpc_port == self.http_port:
            raise ConfigError(f"is {self.http_port}, as grpc_port", field="http_port")
        if self.process_port:
            check_port(self.process_port + 2 * self.processes - 1, "process_port")
        if self.processes > 1 and self.record:
            raise ConfigError("is of one process; there are several", field="record")

    def model_folders(self) -> Mapping[str, Path]:
        """Model name -> folder; a folder without a name is called as its last part."""
        pairs = map(model_name.split, self.models)
        return {
            name or model_name.name_of(folder): Path(folder).expanduser() for name, folder in pairs
        }
