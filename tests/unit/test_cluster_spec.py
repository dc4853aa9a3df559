"""What is wanted, as it is read from TOML and flags, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baton.cluster.placement import Demand
from baton.cluster.ray_cluster import RayCluster
from baton.cluster.reconcile import Limits
from baton.cluster.spec import Settings, read
from baton.errors import ConfigError
from baton.types import Role

EXAMPLE = Path(__file__).parents[2] / "deploy" / "local.toml"


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_the_example_says_the_defaults() -> None:
    plain, example = (
        read(Settings(workers={"model": "m"})),
        read(Settings(toml=EXAMPLE, workers={"model": "m"})),
    )
    assert example.router == plain.router
    assert example.prefill == plain.prefill
    assert example.decode == plain.decode


def test_flags_are_for_both_roles_where_both_have_them() -> None:
    spec = read(Settings(workers={"model": "m", "num_blocks": 7, "max_running": 3}))
    assert spec.prefill.host.engine.num_blocks == spec.decode.host.engine.num_blocks == 7
    assert spec.decode.max_running == 3


def test_own_flags_win_over_common_ones_and_both_over_the_file(tmp_path: Path) -> None:
    toml = write(tmp_path, "[prefill.host.engine]\nmodel = 'm'\nnum_blocks = 1\n")
    common: dict[str, Any] = {"model": "m", "num_blocks": 2}
    spec = read(Settings(toml, workers=common, decode={"num_blocks": 3}))
    assert spec.prefill.host.engine.num_blocks == 2
    assert spec.decode.host.engine.num_blocks == 3
    plain = read(Settings(toml, workers={"model": "m"}))
    assert plain.prefill.host.engine.num_blocks == 1


def test_workers_and_routers_have_names_and_ask_for_cores() -> None:
    settings = Settings(workers={"model": "m", "num_threads": 2, "device": "cuda"})
    spec = read(settings, num_prefill_workers=1, num_decode_workers=2, num_routers=2)
    assert spec.worker_names == ("prefill-0", "decode-0", "decode-1")
    assert spec.router_names == ("router-0", "router-1")
    assert spec.demand_of("decode-1") == Demand("decode-1", Role.DECODE, 2, needs_gpu=True)
    assert spec.config_of("prefill-0") is spec.prefill


def test_the_router_gets_the_checkpoint_and_what_flags_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    workers = {"model": str(tmp_path), "model_name": "mine"}
    spec = read(Settings(workers=workers, router={"no_worker_wait_s": 2.5, "grpc_port": 7}))
    assert spec.router_options["model"] == (f"mine={tmp_path}",)
    assert spec.router_environment == {
        "BATON_ROUTER_NO_WORKER_WAIT_S": "2.5",
        "BATON_ROUTER_GRPC_PORT": "7",
    }
    assert read(Settings(workers={"model": "llama-125m"})).router_options["model"] == ()


@pytest.mark.parametrize(
    ("workers", "counts", "field"),
    [
        ({}, {}, "model"),
        ({"model": "m", "num_blokcs": 3}, {}, "num_blokcs"),
        ({"model": "m", "num_blocks": "many"}, {}, "num_blocks"),
        ({"model": "m"}, {"num_decode_workers": 0}, "num_decode_workers"),
        ({"model": "m"}, {"num_prefill_workers": -1}, "num_prefill_workers"),
        ({"model": "m"}, {"num_routers": 0}, "num_routers"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    workers: dict[str, Any], counts: dict[str, int], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(Settings(workers=workers), **counts)
    assert field in caught.value.field


@pytest.mark.parametrize(
    ("key", "value"), [("block_size", "32"), ("model", "'other'"), ("load_format", "'dummy'")]
)
def test_roles_that_could_not_exchange_kv_are_refused(tmp_path: Path, key: str, value: str) -> None:
    toml = write(
        tmp_path, f"[decode.host.engine]\nmodel = 'm'\n[prefill.host.engine]\n{key} = {value}\n"
    )
    settings = Settings(toml, prefill={} if key == "model" else {"model": "m"})
    with pytest.raises(ConfigError) as caught:
        read(settings)
    assert caught.value.field == f"prefill.host.engine.{key}"
    assert read(settings, num_prefill_workers=0).num_prefill_workers == 0


def test_a_key_that_no_section_has_is_refused(tmp_path: Path) -> None:
    toml = write(tmp_path, "[decode]\nmax_runing = 3\n")
    with pytest.raises(ConfigError, match="max_running"):
        read(Settings(toml, workers={"model": "m"}))


def test_routers_and_workers_must_share_their_state() -> None:
    shared = {"state": "redis://127.0.0.1:6379/0"}
    spec = read(Settings(router=shared, workers={"model": "m", **shared}))
    assert spec.decode.host.state == spec.prefill.host.state == spec.router.state
    assert spec.router_environment["BATON_ROUTER_STATE"] == shared["state"]
    with pytest.raises(ConfigError, match="would not find each other") as refused:
        read(Settings(router=shared, workers={"model": "m"}))
    assert refused.value.field == "prefill.host.state"


def test_whoever_leaves_has_the_time_that_its_configuration_gives(tmp_path: Path) -> None:
    text = "[router]\ndrain_grace_s = 50\n\n[decode.host]\ndrain_grace_s = 90\n"
    spec = read(Settings(toml=write(tmp_path, text), workers={"model": "m"}))
    assert RayCluster(spec).limits.drain_s > 90
    assert RayCluster(spec, limits=Limits(drain_s=300.0)).limits.drain_s == 300
