"""`baton worker`: one worker process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from baton import logs
from baton.cli.options import PORT, fields_as_options, log_level_option
from baton.errors import ConfigError

if TYPE_CHECKING:
    from baton.worker.engine import LoadedEngine


@click.command()
@click.option(
    "--role", type=click.Choice(["decode", "prefill"]), default="decode", show_default=True
)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True), help="TOML; the section is the role."
)
@click.option("--model", help="Checkpoint folder, or with --load-format dummy a shape's name.")
@click.option("--model-name", help="Name that clients ask for (default: the folder's).")
@click.option("--load-format", type=click.Choice(["auto", "dummy"]))
@click.option("--device", help="cpu or cuda[:N] (default cpu).")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]))
@click.option("--kv-dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16", "int8", "fp8"]))
@click.option("--deterministic", is_flag=True, default=None, help="Bit-exact whatever the batch.")
@click.option("--block-size", type=int, help="Tokens per KV block (default 64).")
@click.option("--num-blocks", type=int, help="KV blocks (default: as many as the memory holds).")
@click.option("--kv-cache-bytes", type=int, help="Memory for KV blocks (default 1 GiB).")
@click.option("--max-model-len", type=int, help="Longest request (default: the model's own).")
@click.option("--num-threads", type=int, help="Threads of the engine (default: torch's choice).")
@click.option(
    "--max-running", type=int, help="Samples decoded at a time (default 64; decode only)."
)
@click.option("--max-step-s", type=float, help="Longest engine step in seconds (default 0.25).")
@click.option("--max-chunk-tokens", type=int, help="Prompt tokens in a step at most (default 512).")
@click.option(
    "--verify/--no-verify",
    "verify_checksums",
    default=None,
    help="Check the KV that prefill workers send (default; decode only).",
)
@click.option("--worker-id", help="Name in the cluster (default: role and process).")
@click.option("--host", help="Address to listen on (default 127.0.0.1).")
@click.option("--advertise-address", help="Host that others are told (default: --host).")
@click.option("--port", type=PORT, help="Port to listen on (default: any free one).")
@click.option("--cores", help="CPU cores to use, as 0,1 (default: all).")
@click.option(
    "--transport",
    "transports",
    multiple=True,
    help="cuda_ipc, shm, nixl or torch_dist; repeatable (default: all that work here).",
)
@click.option("--router", "routers", multiple=True, help="host:port of a router; repeatable.")
@click.option("--state", help="redis://host:port/db that all routers read, instead of --router.")
@log_level_option
@fields_as_options()
def worker(role: str, config: Path | None, log_level: str, **flags: Any) -> None:
    """Run a worker and register it with its routers."""
    from baton.engine.folder import check_folder

    logs.configure(role, log_level)
    flags["cores"] = _cores(flags["cores"])
    settings = _settings(role, config, flags)
    check_folder(settings.host.engine)
    _use_cores(settings.host.cores)
    if threads := settings.host.engine.num_threads:  # before torch makes its thread pool
        os.environ["OMP_NUM_THREADS"] = str(threads)
    from baton.cli.progress import loading_bar
    from baton.worker.engine import LoadedEngine

    run = _process(role)
    with loading_bar(str(settings.host.engine.model)) as progress:
        engine = LoadedEngine.load(settings.host.engine, progress)
    asyncio.run(run(settings, engine))


def _settings(role: str, config: Path | None, flags: dict[str, Any]) -> Any:
    """The role's configuration, without torch."""
    from baton.cluster.spec import nested
    from baton.config import load

    if role == "prefill":
        from prefill_worker.config import PrefillConfig

        return load(PrefillConfig, toml=config, section=role, flags=nested(flags))
    from decode_worker.config import DecodeConfig

    return load(DecodeConfig, toml=config, section=role, flags=nested(flags))


def _process(role: str) -> Callable[[Any, LoadedEngine], Coroutine[Any, Any, None]]:
    if role == "prefill":
        from prefill_worker.process import run as run_prefill

        return run_prefill
    from decode_worker.process import run as run_decode

    return run_decode


def _cores(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(core) for core in text.split(",")) if text else ()
    except ValueError:
        raise ConfigError(f"must be numbers, as 0,1, not {text!r}", field="cores") from None


def _use_cores(cores: tuple[int, ...]) -> None:
    if not cores:
        return
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, ValueError, OverflowError) as error:
        usable = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        message = f"cannot be used: {error}; there are {usable}"
        raise ConfigError(message, field="cores") from error
