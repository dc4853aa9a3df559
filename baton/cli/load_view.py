"""A run of the load generator on a terminal: its progress on stderr, its result as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton.bench.outcome import Outcome, Slo
from baton.bench.serve import Progress as RunProgress
from baton.bench.statistics import PERCENTILES
from baton.cli.output import chrome, console, count, plain_table

_COLUMNS = ("mean", *(f"p{percent}" for percent in PERCENTILES))
_ROWS = {"ttft_ms": "time to first token", "itl_ms": "inter-token latency", "e2e_ms": "end to end"}


@contextmanager
def progress_bar() -> Iterator[RunProgress]:
    """Counts requests, and their errors once there are any."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("[red]{task.fields[errors]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=chrome(), expand=True) as bar:
        task = bar.add_task("warming up", total=None, errors="")
        num_errors = 0

        def on_end(outcome: Outcome) -> None:
            nonlocal num_errors
            num_errors += outcome.error is not None
            bar.update(task, advance=1, errors=count(num_errors, "error") if num_errors else "")

        def on_start(num_requests: int) -> None:
            bar.reset(task, description="requests", total=num_requests)

        yield RunProgress(on_start, on_end)


def print_result(result: Mapping[str, Any], slo: Slo) -> None:
    out = console()
    out.print(_latencies(result))
    out.print(_throughput(result, slo))
    if result["errors"]:
        codes = ", ".join(f"{number:,} {code}" for code, number in result["errors_by_code"].items())
        failed = f"{result['errors']:,} of {count(result['requests'], 'request')} failed"
        out.print(f"[red]{failed}[/]: {codes}")
        out.print(f"the first: {result['first_error']}", markup=False)


def _latencies(result: Mapping[str, Any]) -> Table:
    table = plain_table()
    table.add_column("milliseconds")
    for name in _COLUMNS:
        table.add_column(name, justify="right", min_width=8)
    for key, label in _ROWS.items():
        found = result[key]
        table.add_row(label, *(f"{found[name]:,.1f}" if found else "–" for name in _COLUMNS))
    return table


def _throughput(result: Mapping[str, Any], slo: Slo) -> Table:
    table = plain_table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    done = result["requests"] - result["errors"]
    seconds = f"in {result['duration_s']:.1f} s"
    table.add_row("requests/s", f"{result['requests_per_s']:,.2f}", f"{done:,} {seconds}")
    table.add_row("goodput requests/s", f"{result['goodput_requests_per_s']:,.2f}", _slo_text(slo))
    output = f"{result['output_tokens']:,} tokens"
    if result["tokens_per_message"] is not None:
        output += f", {result['tokens_per_message']:.2f} per message"
    table.add_row("output tokens/s", f"{result['output_tokens_per_s']:,.1f}", output)
    if "prompt_tokens" in result:
        prompt = f"{result['prompt_tokens']:,} tokens, {result['cached_prompt_tokens']:,} cached"
        table.add_row("prompt tokens/s", f"{result['prompt_tokens_per_s']:,.1f}", prompt)
    if result["shortened"]:
        shortened = count(result["shortened"], "request")
        table.add_row("shortened", shortened, "to the model's context")
    return table


def _slo_text(slo: Slo) -> str:
    bounds = {"TTFT": slo.ttft_s, "mean ITL": slo.itl_s}
    named = [f"{name} ≤ {1000 * s:g} ms" for name, s in bounds.items() if s is not None]
    return ", ".join(named) or "no objective: every success"
