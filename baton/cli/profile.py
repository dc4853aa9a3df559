"""`baton profile`: what this machine's engine takes, for `baton replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from baton.cli.options import json_option

_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("output", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--model",
    default="llama-125m",
    show_default=True,
    help="A checkpoint folder, or with --load-format dummy a shape's name.",
)
@click.option(
    "--load-format", type=click.Choice(["auto", "dummy"]), default="dummy", show_default=True
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--num-blocks", type=_COUNT, default=160, show_default=True, help="Of the KV cache.")
@click.option("--num-threads", type=click.IntRange(min=0), default=0, help="0: torch's choice.")
@click.option(
    "--time-limit",
    "time_limit_s",
    type=_POSITIVE,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
)
@click.option(
    "--transfer-bytes-per-s",
    type=_POSITIVE,
    default=1e9,
    show_default=True,
    help="Between workers.",
)
@json_option
def profile(
    output: Path,
    time_limit_s: float,
    transfer_bytes_per_s: float,
    as_json: bool,
    **engine: Any,
) -> None:
    """Measure prefill and decode steps here; OUTPUT (.json) is for `baton replay --profile`."""
    from baton.bench.engine_profile import ProfileSettings, measure
    from baton.bench.profiles import write_profile
    from baton.cli.bench_view import step_bar
    from baton.cli.output import console, milliseconds, print_json
    from baton.engine.config import EngineConfig

    settings = ProfileSettings(EngineConfig(**engine), time_limit_s, transfer_bytes_per_s)
    with step_bar() as on_step:
        result = measure(settings, on_step)
    write_profile(result, output)
    if as_json:
        print_json(result)
        return
    for num_tokens in (64, 512):
        step = milliseconds(result.prefill.step_s(num_tokens))
        console().print(f"a prefill step of {num_tokens} tokens takes {step}")
    for num_streams in (1, 8):
        step = milliseconds(result.decode.step_s(num_streams, 256 * num_streams, 0.0))
        console().print(f"a decode step of {num_streams} x 256 tokens takes {step}")
