"""`baton route`: which workers a prompt would get, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from baton.cli.options import address_option, json_option

if TYPE_CHECKING:
    from baton.client.results import Route, RouteOption, RouteWay


@click.command()
@click.argument("prompt")
@click.option("--explain", is_flag=True, help="The candidates, too, and the parts of their cost.")
@click.option("--model", default="", help="Needed where the router serves several.")
@click.option("--tenant", default="", help="Whose cached prefixes count.")
@address_option
@json_option
def route(
    prompt: str, explain: bool, model: str, tenant: str, addresses: tuple[str, ...], as_json: bool
) -> None:
    """Ask a router which workers PROMPT would get now. Nothing is computed.

    A prompt's cost is what it is predicted to wait for its first token, and what it costs others; the
    pair of the least cost is chosen.
    """
    from baton.cli.connect import connected
    from baton.cli.output import print_json

    with connected(addresses) as client:
        answer = client.route(prompt, model=model, tenant=tenant)
    if as_json:
        print_json(answer)
    else:
        _show(answer, explain=explain)


def _show(answer: Route, *, explain: bool) -> None:
    from baton.cli.output import console, count, milliseconds

    out, chosen = console(), answer.chosen
    by = f"prefill on {chosen.prefill}, decode on" if chosen.prefill else "prefill and decode on"
    way = _way(chosen)
    out.print(f"{by} {chosen.decode} · first token in {milliseconds(way.ttft_s)}")
    tokens = count(answer.num_prompt_tokens, "token")
    lent = f", the others taken from {chosen.decode}" if chosen.lends else ""
    out.print(f"{tokens}, {chosen.num_missing_tokens:,} of them to be computed{lent}", style="dim")
    if explain:
        _decode_pools(answer.by_decode)
        _table("decode", [(str(o.decode), o, _way(o)) for o in answer.by_decode])
        remote = [(str(o.prefill), o, o.remote) for o in answer.by_prefill if o.remote]
        _table("prefill", remote)


def _decode_pools(options: Sequence[RouteOption]) -> None:
    """What they would do with the prompt."""
    from baton.cli.output import console, milliseconds, plain_table

    table = plain_table()
    for name in ("decode", "prefill by", "streams", "step with this one"):
        table.add_column(name, justify="left" if name == "decode" else "right")
    for option in options:
        table.add_row(
            str(option.decode),
            str(option.prefill or "itself"),
            str(option.num_streams),
            milliseconds(option.step_s),
        )
    console().print()
    console().print(table)


def _way(option: RouteOption) -> RouteWay:
    """The one that was chosen for this pair."""
    return option.remote if option.prefill and option.remote else option.local


def _table(role: str, rows: Sequence[tuple[str, RouteOption, RouteWay]]) -> None:
    from baton.cli.output import console, milliseconds, plain_table

    if not rows:
        return
    table = plain_table()
    table.add_column(role)
    for name in ("to compute", "wait", "compute", "transfer", "others", "cost"):
        table.add_column(name, justify="right")
    for name, option, way in rows:
        parts = (way.wait_s, way.compute_s, way.transfer_s, way.others_s)
        table.add_row(
            name,
            f"{option.num_missing_tokens:,}",
            *map(milliseconds, (*parts, sum(parts))),
        )
    out = console()
    out.print()
    out.print(table)
