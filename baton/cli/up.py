"""`baton up`: a cluster under Ray, in the foreground."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from baton.cli.options import PORT, fields_as_options, json_option

if TYPE_CHECKING:
    from baton.cluster.ray_cluster import RayCluster

_POLL_S = 0.2
_FOR_ROUTERS = ("host", "grpc_port", "http_port")
_FOR_CLUSTER = ("num_routers", "num_prefill_workers", "num_decode_workers", "ray_address", "name")


@click.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True),
    help="TOML with sections [router], [prefill], [decode]; deploy/local.toml is an example.",
)
@click.option("--address", "ray_address", default="", help="Of a Ray cluster (default: our own).")
@click.option("--name", default="baton", show_default=True, help="Tells Batons on one Ray apart.")
@click.option(
    "--prefill-workers",
    "num_prefill_workers",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Workers that compute prompts and hand their KV over.",
)
@click.option(
    "--no-prefill-workers",
    "num_prefill_workers",
    flag_value=0,
    type=int,
    help="A plain aggregated server: decode workers compute prompts themselves.",
)
@click.option(
    "--decode-workers",
    "num_decode_workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Workers that decode.",
)
@click.option("--routers", "num_routers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--host", help="Address that routers listen on (default 127.0.0.1).")
@click.option("--grpc-port", type=PORT, help="The first router's (default 50051); 0: any.")
@click.option("--http-port", type=PORT, help="The first router's (default 8000); 0: any.")
@click.option("--model", help="Checkpoint folder, or with --load-format dummy a shape's name.")
@click.option("--model-name", help="Name that clients ask for (default: the folder's).")
@click.option("--load-format", type=click.Choice(["auto", "dummy"]))
@click.option("--device", help="cpu or cuda (default cpu).")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]))
@click.option("--kv-dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16", "int8", "fp8"]))
@click.option("--deterministic", is_flag=True, default=None, help="Bit-exact whatever the batch.")
@click.option("--block-size", type=int, help="Tokens per KV block (default 64).")
@click.option("--num-blocks", type=int, help="KV blocks per worker (default: as many as fit).")
@click.option("--kv-cache-bytes", type=int, help="Memory for KV blocks per worker (default 1 GiB).")
@click.option("--max-model-len", type=int, help="Longest request (default: the model's own).")
@click.option("--num-threads", type=int, help="Cores per worker (default: a fair share).")
@click.option("--max-running", type=int, help="Samples decoded at a time (default 64).")
@click.option("--max-step-s", type=float, help="Longest engine step in seconds (default 0.25).")
@click.option("--max-chunk-tokens", type=int, help="Prompt tokens in a step at most (default 512).")
@click.option("--state", help="redis://host:port/db that routers and workers share.")
@click.option(
    "--transport",
    "transports",
    multiple=True,
    help="cuda_ipc, shm, nixl or torch_dist; repeatable (default: all that work here).",
)
@json_option
@fields_as_options()
def up(config: Path | None, as_json: bool, **flags: Any) -> None:
    """Start routers, prefill workers and decode workers, and run until Ctrl-C.

    Workers that die are started again. With --json, one JSON object says when and where it serves.
    """
    from baton.cli.output import chrome, print_json
    from baton.cluster.ray_cluster import RayCluster
    from baton.cluster.spec import Settings, read
    from baton.engine.folder import check_folder

    counts = {name: flags.pop(name) for name in _FOR_CLUSTER}
    routers = {name: flags.pop(name) for name in _FOR_ROUTERS} | {"state": flags["state"]}
    spec = read(Settings(toml=config, router=routers, workers=flags), **counts)
    if not spec.ray_address:  # else it is on the machines of others
        check_folder(spec.decode.host.engine)
    out = chrome()
    started_s = time.monotonic()
    interrupts = _Interrupts()
    out.print(
        f"starting {spec.num_routers} router, {spec.num_prefill_workers} prefill and "
        f"{spec.num_decode_workers} decode workers of {spec.decode.host.engine.model}",
        style="dim",
    )
    cluster = RayCluster(spec, tell=lambda line: out.print(line, style="dim", markup=False))
    interrupts.hurry = cluster.hurry
    with cluster:
        interrupts.serving = True
        ready_s = time.monotonic() - started_s
        out.print(
            f"serving after {ready_s:.1f} s: gRPC {', '.join(cluster.addresses)}, "
            f"OpenAI {cluster.base_url}; Ctrl-C ends it"
        )
        if as_json:
            print_json(_described(cluster, ready_s))
        while not interrupts.stop.wait(_POLL_S):
            cluster.check()
        out.print("stopping; again Ctrl-C ends without waiting for requests", style="dim")


def _described(cluster: RayCluster, ready_s: float) -> dict[str, Any]:
    pids, routers = cluster.pids, cluster.spec.router_names
    return {
        "address": cluster.address,
        "addresses": cluster.addresses,
        "base_url": cluster.base_url,
        "routers": {name: pids[name] for name in routers},
        "workers": {name: pid for name, pid in pids.items() if name not in routers},
        "ready_s": ready_s,
    }


class _Interrupts:
    """Ctrl-C and SIGTERM: the first one while starting unwinds, while serving it asks to stop; all
    further ones only hurry, so that cleaning up is never cut short."""

    def __init__(self) -> None:
        self.serving = False
        self.stop = threading.Event()
        self.hurry = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, *_signal: object) -> None:
        if self.stop.is_set():
            self.hurry.set()
            return
        self.stop.set()
        if not self.serving:
            raise KeyboardInterrupt
