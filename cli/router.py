"""`baton router`: one router process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from cli import logs


@click.command()
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True), help="TOML, section [router]."
)
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--grpc-port", type=int, help="Port of gRPC (default 50051).")
@click.option("--http-port", type=int, help="Port of the OpenAI-compatible API (default 8000).")
@click.option(
    "--model", "models", multiple=True, help="[NAME=]FOLDER with the tokenizer; repeatable."
)
@click.option("--max-waiting", type=int, help="Requests that may wait at the gate.")
@click.option("--log-level", default="info", show_default=True)
def router(config: Path | None, log_level: str, models: tuple[str, ...], **flags: object) -> None:
    """Run a router: gRPC and OpenAI HTTP in, decode workers behind."""
    from baton.config import load
    from router.config import RouterConfig
    from router.process import Router

    logs.configure("router", log_level)
    given = {**flags, "models": models or None}
    settings = load(RouterConfig, toml=config, section="router", flags=given)

    async def run() -> None:
        await Router(settings).run()

    asyncio.run(run())
