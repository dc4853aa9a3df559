"""What is wanted: how many routers and workers, and what each is told. Read from TOML and flags.

Knows the roles' configurations and import paths, and no process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from baton.cluster import ray_address
from baton.cluster.placement import Demand
from baton.config import check_port, load
from baton.engine.config import EngineConfig
from baton.errors import ConfigError
from baton.model_name import name_of
from baton.types import Role
from baton.worker.config import HostConfig
from decode_worker.config import DecodeConfig
from prefill_worker.config import PrefillConfig
from router.config import RouterConfig

RoleConfig = DecodeConfig | PrefillConfig
Fields = Mapping[str, Any]

# What a Ray actor mounts.
IMPORT_PATHS = {
    Role.PREFILL: "prefill_worker.process:run",
    Role.DECODE: "decode_worker.process:run",
}
_END_S = 5.0
_LEAST = {"num_routers": 1, "num_prefill_workers": 0, "num_decode_workers": 1}


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """`router`: the first router; each further one listens on the ports after those of the one before it.
    `router_options` and `router_environment`: beside ports, what makes `baton router` this `router`.
    `ray_address`: of a Ray cluster to join, empty for one of our own; `name` tells apart several Batons
    on one Ray."""

    router: RouterConfig
    prefill: PrefillConfig
    decode: DecodeConfig
    router_options: Fields = field(default_factory=dict)
    router_environment: Mapping[str, str] = field(default_factory=dict)
    num_routers: int = 1
    num_prefill_workers: int = 1
    num_decode_workers: int = 1
    ray_address: str = ""
    name: str = "baton"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"must be at least {least}", field=name)
        if self.ray_address:
            ray_address.check(self.ray_address)
        if not self.decode.host.engine.model:
            raise ConfigError("is required", field="model")
        for name in ("grpc_port", "http_port"):
            if first := getattr(self.router, name):
                check_port(first + self.num_routers - 1, name)
        for role, config in (("prefill", self.prefill), ("decode", self.decode)):
            if config.host.state != self.router.state:
                raise ConfigError(
                    f"is {config.host.state!r} for {role} and {self.router.state!r} for routers: they "
                    "would not find each other",
                    field=f"{role}.host.state",
                )
        if self.num_prefill_workers:
            self._check_roles_agree()

    def _check_roles_agree(self) -> None:
        prefill, decode = self.prefill.host.engine, self.decode.host.engine
        for name in ("model", "load_format", "block_size"):
            if getattr(prefill, name) != getattr(decode, name):
                raise ConfigError(
                    f"is {getattr(prefill, name)!r} for prefill and {getattr(decode, name)!r} for "
                    "decode: one could not use the KV of the other",
                    field=f"prefill.host.engine.{name}",
                )

    @property
    def worker_names(self) -> tuple[str, ...]:
        prefill = (f"prefill-{index}" for index in range(self.num_prefill_workers))
        decode = (f"decode-{index}" for index in range(self.num_decode_workers))
        return (*prefill, *decode)

    @property
    def router_names(self) -> tuple[str, ...]:
        return tuple(f"router-{index}" for index in range(self.num_routers))

    @property
    def longest_leave_s(self) -> float:
        """How long an orderly leave may take whoever is told to: its grace, and the time to end."""
        graces = (self.router.drain_grace_s, *(c.host.drain_grace_s for c in self._roles))
        return max(graces) + _END_S

    @property
    def _roles(self) -> tuple[PrefillConfig, DecodeConfig]:
        return self.prefill, self.decode

    def config_of(self, worker_name: str) -> RoleConfig:
        return self.prefill if role_of(worker_name) is Role.PREFILL else self.decode

    def demand_of(self, worker_name: str) -> Demand:
        engine = self.config_of(worker_name).host.engine
        needs_gpu = engine.device == "cuda"  # "cuda:1" is a choice already made
        return Demand(worker_name, role_of(worker_name), engine.num_threads, needs_gpu)


def role_of(worker_name: str) -> Role:
    return Role[worker_name.partition("-")[0].upper()]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user gives: a TOML file with sections [router], [prefill] and [decode], and flags, which are
    fields of those sections, of their host or of its engine by name. `workers` are for both roles.
    `router` takes single values only, and `models`."""

    toml: Path | None = None
    router: Fields = field(default_factory=dict)
    workers: Fields = field(default_factory=dict)
    prefill: Fields = field(default_factory=dict)
    decode: Fields = field(default_factory=dict)


def read(settings: Settings, **counts: Any) -> ClusterSpec:
    """`counts`: fields of ClusterSpec that are no configuration. Raises ConfigError naming what is
    wrong, and where."""
    _check_known(settings.workers)
    decode: DecodeConfig = _read_role(DecodeConfig, "decode", settings, settings.decode)
    prefill: PrefillConfig = _read_role(PrefillConfig, "prefill", settings, settings.prefill)
    flags = _given(settings.router)
    router = load(RouterConfig, toml=settings.toml, section="router", flags=flags)
    options = {
        "config": settings.toml and settings.toml.resolve(),
        "model": router.models or _text_model(decode),
    }
    environment = {
        f"BATON_ROUTER_{name.upper()}": str(value)
        for name, value in flags.items()
        if name not in ("models", "host", *options)
    }
    return ClusterSpec(router, prefill, decode, options, environment, **counts)


def nested(flags: Fields) -> dict[str, Any]:
    """Flags as a role's configuration nests them; those not given stay out."""
    given = _given(flags)
    engine = {name: given.pop(name) for name in _names(EngineConfig) & set(given)}
    host = {name: given.pop(name) for name in _names(HostConfig) & set(given)}
    return {**given, "host": {**host, "engine": engine}}


def _read_role(cls: Any, section: str, settings: Settings, own: Fields) -> Any:
    common = {name: value for name, value in settings.workers.items() if _knows(cls, name)}
    config = load(cls, toml=settings.toml, section=section, flags=nested({**common, **own}))
    model = config.host.engine.model
    if not model or not Path(model).exists():
        return config  # the name of a shape, or a folder of another node
    engine = replace(config.host.engine, model=str(Path(model).resolve()))
    return replace(config, host=replace(config.host, engine=engine))


def _check_known(workers: Fields) -> None:
    """A flag for both roles may be one that only one of them has."""
    for name in workers:
        if not (_knows(PrefillConfig, name) or _knows(DecodeConfig, name)):
            raise ConfigError("is not known", field=f"flags: {name}")


def _knows(cls: Any, name: str) -> bool:
    return any(name in _names(each) for each in (cls, HostConfig, EngineConfig))


def _names(cls: Any) -> set[str]:
    return {each.name for each in fields(cls)}


def _given(flags: Fields) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value not in (None, ())}


def _text_model(decode: DecodeConfig) -> tuple[str, ...]:
    """NAME=FOLDER of the served checkpoint, where it has a tokenizer for the router."""
    folder = Path(decode.host.engine.model)
    if not (folder / "config.json").exists():
        return ()
    return (f"{decode.host.model_name or name_of(folder)}={folder}",)
