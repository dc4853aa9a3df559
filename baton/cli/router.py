"""`baton router`: one router, of one process or of several."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import click

from baton import logs
from baton.cli.options import PORT, fields_as_options, log_level_option


@click.command()
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True), help="TOML, section [router]."
)
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--grpc-port", type=PORT, help="Port of gRPC (default 50051).")
@click.option("--http-port", type=PORT, help="Port of the OpenAI-compatible API (default 8000).")
@click.option(
    "--model", "models", multiple=True, help="[NAME=]FOLDER with the tokenizer; repeatable."
)
@click.option("--processes", type=int, help="Processes that share both ports (default 1).")
@click.option("--process-port", type=PORT, help="First of the ports of each process alone.")
@click.option("--state", help="redis://host:port/db that several routers share.")
@click.option("--record", metavar="FILE", help="Write down decisions and what they follow from.")
@click.option("--otlp-endpoint", metavar="HOST:PORT", help="Send traces to this collector.")
@click.option("--max-waiting", type=int, help="Requests that may wait at the gate (default 1024).")
@click.option("--quota", "quotas", multiple=True, help="TENANT=TOKENS_PER_S; repeatable.")
@click.option("--share", "shares", multiple=True, help="TENANT=WEIGHT; repeatable.")
@log_level_option
@fields_as_options()
def router(config: Path | None, log_level: str, models: tuple[str, ...], **flags: object) -> None:
    """Run a router: gRPC and OpenAI HTTP in, decode workers behind."""
    from baton.config import load
    from router.config import RouterConfig
    from router.process import Router
    from router.processes import run as run_processes

    logs.configure("router", log_level)
    admission = {name: flags.pop(name) for name in ("max_waiting", "quotas", "shares")}
    given = {
        **flags,
        "models": models or None,
        "admission": {name: value for name, value in admission.items() if value not in (None, ())},
    }
    settings = load(RouterConfig, toml=config, section="router", flags=given)

    async def run() -> None:
        if settings.processes > 1:
            await run_processes(settings, partial(logs.configure, "router", log_level))
        else:
            await Router(settings).run()

    asyncio.run(run())
