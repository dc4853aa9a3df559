"""`baton bench router`: what a router's decisions cost, and what it passes on."""

from __future__ import annotations

from typing import Any

import click

from baton.cli.options import json_option

_COUNT = click.IntRange(min=1)


@click.command()
@click.option("--workers", "num_pools", type=_COUNT, default=1000, show_default=True)
@click.option("--blocks", "num_blocks", type=_COUNT, default=10_000_000, show_default=True)
@click.option(
    "--prompt-tokens", "num_prompt_tokens", type=_COUNT, default=16_384, show_default=True
)
@click.option("--block-size", type=_COUNT, default=64, show_default=True)
@click.option(
    "--only",
    type=click.Choice(["decisions", "streams"]),
    help="One half: deciding (about 100 bytes of memory a block), or passing tokens on.",
)
@json_option
def router(only: str | None, as_json: bool, **options: int) -> None:
    """Time of a routing decision with many workers and blocks; messages and tokens per second of a
    router on one core, and the latency that it adds.
    """
    from baton.bench import router_decisions, router_streams
    from baton.cli.output import print_json

    result: dict[str, Any] = {}
    if only != "streams":
        result |= router_decisions.measure(router_decisions.DecisionSettings(**options))
    if only != "decisions":
        result |= router_streams.measure()
    if as_json:
        print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from baton.cli.output import console, plain_table

    table = plain_table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in result.items():
        if isinstance(value, dict):
            for point, figure in value.items():
                table.add_row(f"{name} {point}", f"{figure:,.1f}")
        else:
            table.add_row(name, f"{value:,.1f}")
    console().print(table)
