"""`baton up`: a cluster on this machine, in the foreground."""

from __future__ import annotations

import time

import click
from rich.console import Console

_POLL_S = 0.2


@click.command()
@click.option(
    "--model", required=True, help="Checkpoint folder, or with --load-format dummy a shape."
)
@click.option("--load-format", type=click.Choice(["auto", "dummy"]), default="auto")
@click.option("--workers", "num_workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--grpc-port", type=int, default=50051, show_default=True)
@click.option("--http-port", type=int, default=8000, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto")
@click.option("--deterministic", is_flag=True, help="Bit-exact whatever the batch.")
@click.option("--num-blocks", type=int, help="KV blocks per worker.")
@click.option("--num-threads", type=int, help="Engine threads per worker.")
def up(
    num_workers: int, model: str, grpc_port: int, http_port: int, **worker_flags: object
) -> None:
    """Start a router and workers, and run until Ctrl-C."""
    from baton.errors import Unavailable
    from cluster.local import LocalCluster

    console = Console(stderr=True)
    cluster = LocalCluster(
        model,
        num_workers,
        worker_flags=worker_flags,
        grpc_port=grpc_port,
        http_port=http_port,
        quiet=False,
    )
    with cluster:
        console.print(f"serving [bold]{model}[/bold] on gRPC {cluster.address}, {cluster.base_url}")
        while all(process.alive for process in cluster.processes()):
            time.sleep(_POLL_S)
        dead = [process for process in cluster.processes() if not process.alive]
        names = ", ".join(f"{p.name} (exit code {p.popen.returncode})" for p in dead)
        raise Unavailable(f"{names} ended")
