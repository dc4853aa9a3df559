"""`baton replay`: a trace through a cluster in simulated time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from baton.cli.options import json_option

if TYPE_CHECKING:
    from baton.bench.replay import Replay

_COUNT = click.IntRange(min=1)
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("trace", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--prefill", "num_prefill", type=click.IntRange(min=0), default=4, show_default=True)
@click.option("--decode", "num_decode", type=_COUNT, default=4, show_default=True)
@click.option(
    "--blocks", "num_blocks", type=_COUNT, default=10_000, show_default=True, help="Of each worker."
)
@click.option("--block-size", type=_COUNT, default=512, show_default=True, help="Tokens.")
@click.option(
    "--profile",
    default="mocker",
    show_default=True,
    help="The engine: mocker, splitwise/…, silicon/…, or a file of `baton profile`.",
)
@click.option(
    "--policy",
    type=click.Choice(["baton", "round_robin", "overlap"]),
    default="baton",
    show_default=True,
    help="Baton's, each worker in turn, or the published rule of Dynamo's KV router.",
)
@click.option(
    "--local-prefill",
    is_flag=True,
    help="Decode workers may compute prompts, as when serving; the published figures are without.",
)
@click.option("--speedup", type=_POSITIVE, default=1.0, show_default=True, help="Of the arrivals.")
@click.option("--routers", "num_routers", type=_COUNT, default=1, show_default=True)
@click.option("--limit", type=_COUNT, help="Only the first requests.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a PNG.")
@json_option
def replay(
    trace: Path,
    num_prefill: int,
    num_decode: int,
    num_blocks: int,
    block_size: int,
    profile: str,
    policy: str,
    local_prefill: bool,
    speedup: float,
    num_routers: int,
    limit: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run TRACE through a simulated cluster, with the policy and the schedulers that serve.

    TRACE is Mooncake's JSONL, Azure's CSV or a record of `baton router --record`, gzipped or not; a name
    alone is looked for in BATON_DATA, too. synthetic/KIND/SEED is made up: KIND is chat, agents, documents,
    unshared or batches.
    """
    from baton.bench.profiles import find_profile
    from baton.bench.replay import arrivals, find_trace
    from baton.bench.replay import replay as run
    from baton.planner.simulator import Baseline, ClusterShape
    from router.routing.policy import PolicySettings

    engine = find_profile(profile)
    settings = PolicySettings(
        hand_off_s=engine.hand_off_s,
        transfer_bytes_per_s=engine.transfer_bytes_per_s,
        local_prefill=local_prefill,
        lend=False,  # the simulator's decode workers lend nothing
    )
    shape = ClusterShape(
        num_prefill,
        num_decode,
        num_blocks,
        block_size,
        engine,
        settings if policy == "baton" else Baseline(policy),
        num_routers,
    )
    requests = find_trace(trace, limit)
    result = run(shape, arrivals(requests, block_size=block_size, speedup=speedup))
    if plot is not None:
        from baton.bench.replay_plot import draw

        draw(result.outcome, plot)
    _show(result, as_json=as_json)


def _show(result: Replay, *, as_json: bool) -> None:
    from baton.cli.output import console, jsonable, plain_table, print_json

    figures = jsonable(result.report) | {"wall_s": result.wall_s}
    if as_json:
        print_json(figures)
        return
    table = plain_table()
    for name in ("milliseconds", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if name == "milliseconds" else "right")
    for name, label in (("ttft_ms", "TTFT"), ("itl_ms", "ITL"), ("e2e_ms", "end to end")):
        table.add_row(
            label, *(f"{figures[name][key]:,.1f}" for key in ("mean", "p50", "p90", "p99"))
        )
    out = console()
    out.print(table)
    reuse = figures["reuse_ratio"]
    rate = figures["requests"] / result.wall_s
    refused = f" · {figures['num_refused']:,} refused" if figures["num_refused"] else ""
    out.print(
        f"{figures['requests']:,} requests{refused} · {reuse:.1%} of the prompt tokens reused"
    )
    busy, given = figures["imbalance"], figures["prefill_imbalance"]
    decoded = figures["decode_imbalance"]
    out.print(
        f"most over the mean: time of a prefill worker {busy:.3f}, its requests {given:.3f}, "
        f"those of a decode worker {decoded:.3f}"
    )
    out.print(f"simulated in {result.wall_s:.1f} s, {rate:,.0f} requests/s", style="dim")
