"""`baton bench perplexity`: what it takes and how its table looks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import click

from baton.cli.options import json_option

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.option("--model", type=_FOLDER, help="Checkpoint folder. [default: the demo's]")
@click.option("--text", type=_FILE, help="Gzipped. [default: tinyshakespeare in BATON_DATA]")
@click.option(
    "--kv-dtype", "kv_dtypes", default="fp32,fp16,int8,fp8", show_default=True, help="By name."
)
@click.option("--window", type=click.IntRange(min=2), default=512, show_default=True)
@click.option("--tokens", "num_tokens", type=click.IntRange(min=2), help="At most. [default: all]")
@click.option("--block-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@json_option
def perplexity(as_json: bool, kv_dtypes: str, **options: Any) -> None:
    """Perplexity of a model on held-out text, by the dtype of its KV cache.

    The last tenth of the text, read through the engine's paged cache, prefilled at once and fed token by
    token. Each dtype is compared with the first one.
    """
    from baton.bench.perplexity import PerplexitySettings, measure
    from baton.cli.bench_view import step_bar
    from baton.cli.output import print_json
    from baton.engine.config import KvDtype

    names = tuple(dict.fromkeys(name.strip() for name in kv_dtypes.split(",")))
    for name in names:
        if name not in get_args(KvDtype):
            raise click.BadParameter(
                f"{name!r} is none of {', '.join(get_args(KvDtype))}", param_hint="--kv-dtype"
            )
    given = {name: value for name, value in options.items() if value is not None}
    settings = PerplexitySettings(kv_dtypes=cast("tuple[KvDtype, ...]", names), **given)
    with step_bar() as on_step:
        result = measure(settings, on_step)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: Mapping[str, Any]) -> None:
    from baton.cli.output import console, plain_table

    table = plain_table()
    table.add_column("KV")
    table.add_column("fed by")
    for name in ("KV bytes/token", "perplexity", "bits/byte", "more nats/token", "95 %"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        low, high = row["ci95"]
        table.add_row(
            row["kv_dtype"],
            row["feed"],
            f"{row['kv_bytes_per_token']:,.0f}",
            f"{row['perplexity']:.4f}",
            f"{row['bits_per_byte']:.5f}",
            f"{row['added_nats_per_token']:+.5f}",
            f"{low:+.5f} to {high:+.5f}",
        )
    out = console()
    out.print(table)
    out.print(
        f"{result['num_tokens']:,} tokens ({result['num_bytes']:,} bytes) of {result['model']} in "
        f"windows of {result['window']}, blocks of {result['block_size']} tokens",
        style="dim",
    )
