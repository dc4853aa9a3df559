"""What start-up configuration accepts, and how it says what is wrong with the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from baton.config import Times, load
from baton.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    max_streams: int = 10
    grace_s: float = 1.5


@dataclass(frozen=True)
class RouterConfig:
    model: str
    port: int = 8000
    share: float = 0.5
    verbose: bool = False
    log: Path | None = None
    mode: Literal["auto", "always"] = "auto"
    workers: tuple[str, ...] = ()
    checkpoint: str | Path = ""
    limits: Limits = field(default_factory=Limits)
    limit: int | None = None
    cores: tuple[int, ...] = ()


def read(
    tmp_path: Path, text: str = "", env: dict[str, str] | None = None, **flags: object
) -> RouterConfig:
    path = tmp_path / "baton.toml"
    path.write_text(text)
    return load(RouterConfig, toml=path, section="router", flags=flags, env=env or {})


def test_later_sources_win(tmp_path: Path) -> None:
    toml = '[router]\nmodel = "toml"\nport = 1\nshare = 0.1\nlimits.max_streams = 3\n'
    env = {"BATON_ROUTER_PORT": "2", "BATON_ROUTER_SHARE": "0.2", "BATON_WORKER_PORT": "9"}
    config = read(tmp_path, toml, env, share=0.3, verbose=None)
    assert config == RouterConfig("toml", 2, 0.3, limits=Limits(max_streams=3))


def test_lists_of_numbers(tmp_path: Path) -> None:
    """As the cores of `baton worker --cores 0,1`, which come as a flag, from TOML or from the
    environment."""
    assert read(tmp_path, model="m", cores=(0, 1)).cores == (0, 1)
    assert read(tmp_path, '[router]\nmodel = "m"\ncores = [2, 3]').cores == (2, 3)
    assert read(tmp_path, env={"BATON_ROUTER_CORES": "4, 5"}, model="m").cores == (4, 5)
    with pytest.raises(ConfigError, match="whole number"):
        read(tmp_path, env={"BATON_ROUTER_CORES": "4,x"}, model="m")


def test_every_type_from_toml(tmp_path: Path) -> None:
    toml = """
    [router]
    model = "m"
    share = 1
    verbose = true
    log = "~/x.log"
    mode = "always"
    workers = ["a:1", "b:2"]
    checkpoint = "here"
    limit = 4
    [router.limits]
    grace_s = 2
    """
    config = read(tmp_path, toml)
    assert config == RouterConfig(
        model="m",
        share=1.0,
        verbose=True,
        log=Path("~/x.log").expanduser(),
        mode="always",
        workers=("a:1", "b:2"),
        checkpoint="here",
        limits=Limits(grace_s=2.0),
        limit=4,
    )
    assert type(config.share) is type(config.limits.grace_s) is float


def test_every_type_from_the_environment(tmp_path: Path) -> None:
    env = {
        "BATON_ROUTER_MODEL": "8000",
        "BATON_ROUTER_VERBOSE": "True",
        "BATON_ROUTER_LOG": "/x.log",
        "BATON_ROUTER_MODE": "always",
        "BATON_ROUTER_WORKERS": "a:1, b:2",
        "BATON_ROUTER_LIMITS_GRACE_S": "2",
        "BATON_ROUTER_LIMITS_MAX_STREAMS": "3",
        "BATON_ROUTER_LIMIT": "4",
    }
    config = read(tmp_path, env=env)
    assert config == RouterConfig(
        model="8000",
        verbose=True,
        log=Path("/x.log"),
        mode="always",
        workers=("a:1", "b:2"),
        limits=Limits(3, 2.0),
        limit=4,
    )


def test_flags_of_a_nested_table_leave_the_rest_of_it(tmp_path: Path) -> None:
    toml = '[router]\nmodel = "m"\nlimits.max_streams = 3'
    assert read(tmp_path, toml, limits={"grace_s": 9.0}).limits == Limits(3, 9.0)


@pytest.mark.parametrize(
    ("toml", "key", "message"),
    [
        ("prot = 1", "router.prot", "is not known; did you mean port?"),
        ("limits.grace = 1", "router.limits.grace", "did you mean grace_s?"),
        ("zzz = 1", "router.zzz", "is not known"),
        ('port = "80"', "router.port", "must be a whole number, not '80'"),
        ("port = true", "router.port", "must be a whole number"),
        ("port = 1.5", "router.port", "must be a whole number"),
        ("model = 3", "router.model", "must be a string"),
        ('share = "much"', "router.share", "must be a number"),
        ("verbose = 1", "router.verbose", "must be true or false"),
        ("log = 1", "router.log", "must be a path"),
        ('mode = "never"', "router.mode", "must be one of 'auto', 'always', not 'never'"),
        ("workers = [1]", "router.workers", "must be a list of strings"),
        ("cores = [true]", "router.cores", "must be a list of whole numbers"),
        ('workers = "a:1"', "router.workers", "must be a list of strings"),
        ("limits = 1", "router.limits", "must be a table"),
        ('limit = "x"', "router.limit", "must be a whole number"),
        ("checkpoint = 1", "router.checkpoint", "must be a string, not 1 or must be a path"),
    ],
)
def test_wrong_toml_is_named_by_file_and_key(
    tmp_path: Path, toml: str, key: str, message: str
) -> None:
    with pytest.raises(ConfigError) as wrong:
        read(tmp_path, f"[router]\n{toml}\n", model="m")
    assert wrong.value.field == f"{tmp_path / 'baton.toml'}: {key}"
    assert message in wrong.value.message


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("BATON_ROUTER_PROT", "1", "did you mean BATON_ROUTER_PORT?"),
        ("BATON_ROUTER_PORT", "eighty", "must be a whole number, not 'eighty'"),
        ("BATON_ROUTER_VERBOSE", "maybe", "must be true or false"),
        ("BATON_ROUTER_LIMITS_GRACE", "1", "did you mean BATON_ROUTER_LIMITS_GRACE_S?"),
        ("BATON_ROUTER_LIMITS_GRACE_S", "long", "must be a number"),
    ],
)
def test_wrong_environment_is_named_by_variable(
    tmp_path: Path, variable: str, value: str, message: str
) -> None:
    with pytest.raises(ConfigError) as wrong:
        read(tmp_path, env={variable: value}, model="m")
    assert wrong.value.field == f"environment: {variable}"
    assert message in wrong.value.message


def test_wrong_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flags: port: must be a whole number"):
        read(tmp_path, model="m", port="80")


def test_what_has_no_default_is_required(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"router\.model: is required"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("router = 1", "must be a table"), ("[router", "is not TOML"), ("[[router]]", "be a table")],
)
def test_file_that_has_no_such_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text, model="m")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load(RouterConfig, toml=tmp_path / "absent.toml", section="router")


def test_no_file_at_all() -> None:
    assert load(Limits, toml=None, section="limits", env={}) == Limits()


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_times_are_positive(wrong: float) -> None:
    with pytest.raises(ConfigError, match="fence_timeout_s"):
        Times(fence_timeout_s=wrong)


def test_lease_outlasts_the_interval_of_reports() -> None:
    with pytest.raises(ConfigError, match="worker_lease_s"):
        Times(worker_lease_s=1.0, report_interval_s=1.0)


def test_watchdog_follows_the_longest_step() -> None:
    assert Times().watchdog_after(0.1) == 5.0
    assert Times().watchdog_after(2.0) == 20.0


SERVICE = {  # what Kubernetes sets for a Service called `baton-demo`
    "BATON_DEMO_SERVICE_HOST": "10.0.0.1",
    "BATON_DEMO_SERVICE_PORT": "50051",
    "BATON_DEMO_SERVICE_PORT_GRPC": "50051",
    "BATON_DEMO_PORT": "tcp://10.0.0.1:50051",
    "BATON_DEMO_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "BATON_DEMO_PORT_50051_TCP_PROTO": "tcp",
    "BATON_DEMO_PORT_50051_TCP_PORT": "50051",
    "BATON_DEMO_PORT_50051_TCP_ADDR": "10.0.0.1",
}


@dataclass(frozen=True)
class Ported:
    port: int = 1


def test_variables_of_a_kubernetes_service_configure_nothing() -> None:
    read = load(Ported, toml=None, section="demo", env=SERVICE)
    assert read == Ported()
    mine = SERVICE | {"BATON_DEMO_PORT": "7"}
    assert load(Ported, toml=None, section="demo", env=mine) == Ported(7)


@pytest.mark.parametrize(
    "misspelt",
    ["BATON_DEMO_PROT", "BATON_DEMO_PORTS", "BATON_DEMO_PORT_50051", "BATON_DEMO_SERVICE_HOSTS"],
)
def test_a_misspelt_variable_beside_them_still_fails(misspelt: str) -> None:
    with pytest.raises(ConfigError, match=misspelt):
        load(Ported, toml=None, section="demo", env=SERVICE | {misspelt: "7"})


@pytest.mark.parametrize("variable", sorted(SERVICE.keys() - {"BATON_DEMO_SERVICE_HOST"}))
def test_without_a_service_they_are_misspelt(variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load(Ported, toml=None, section="demo", env={variable: SERVICE[variable]})
