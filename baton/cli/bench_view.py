"""Benchmarks that start what they need, on a terminal: progress on stderr, results as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton.bench.rounds import OnStep
from baton.cli.output import chrome, console, count, plain_table


@contextmanager
def step_bar() -> Iterator[OnStep]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=chrome(), expand=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda what, done, total: bar.update(
            task, description=what, completed=done, total=total
        )


def print_ttft(result: Mapping[str, Any]) -> None:
    columns = ("aggr. ms", "disaggr. ms", "ratio", "95 %", "exposed ms", "MB", "n")
    table = _table("prompt", *columns)
    for row in result["rows"]:
        table.add_row(
            f"{row['prompt_tokens']:,}",
            f"{row['aggregated_ms']:,.1f}",
            f"{row['disaggregated_ms']:,.1f}",
            f"{row['ratio']:.3f}",
            _interval(row["ci95"], 3),
            f"{row['exposed_ms']:.1f}",
            f"{row['bytes_moved'] / 1e6:,.1f}",
            f"{row['n']}",
        )
    out = console()
    out.print(table)
    for row in result["rows"]:
        remote = f"{row['num_remote']} of {row['n']} prefilled remotely"
        where = f"{row['prompt_tokens']:,} tokens: {remote}"
        step = f"a decode step then takes {row['decode_step_ms']:.1f} ms"
        out.print(f"{where}; {step}", style="dim")


def print_faces(result: Mapping[str, Any]) -> None:
    """The last ratio is that of HTTP to the plain reader's."""
    columns = ("gRPC ms", "HTTP ms", "ratio", "95 %", "plain ms", "ratio", "95 %", "n")
    table = _table("words", *columns)
    for row in result["rows"]:
        table.add_row(
            f"{row['prompt_words']:,}",
            f"{row['grpc_ms']:,.1f}",
            f"{row['http_ms']:,.1f}",
            f"{row['over']:.2f}",
            _interval(row["over_ci95"], 2),
            f"{row['plain_ms']:,.1f}",
            f"{row['agreement']:.2f}",
            _interval(row["agreement_ci95"], 2),
            f"{row['n']}",
        )
    console().print(table)


def print_interference(result: Mapping[str, Any]) -> None:
    table = _table("milliseconds", "disaggregated", "aggregated")
    sides = (result["disaggregated"], result["aggregated"])
    for name, label in (("itl_ms_quiet", "quiet"), ("itl_ms_loaded", "loaded")):
        for point in ("p50", "p99"):
            values = (f"{side[name][point]:,.1f}" for side in sides)
            table.add_row(f"ITL {label} {point}", *values)
    table.add_row("loaded p99 / quiet p99", *(f"{side['ratio_p99']:.2f}" for side in sides))
    table.add_row("  95 %", *(_interval(side["ci95"], 2) for side in sides))
    table.add_row("TTFT of the prompts", *(f"{side['prompt_ttft_ms']:,.0f}" for side in sides))
    table.add_row("tokens/s", *(f"{side['tokens_per_s']:,.0f}" for side in sides))
    table.add_row("prompts", *(f"{side['prompts']:,}" for side in sides))
    table.add_row("hand-offs", *(f"{side['transfers']:,}" for side in sides))
    table.add_row("gaps quiet", *(f"{side['num_gaps_quiet']:,}" for side in sides))
    table.add_row("gaps loaded", *(f"{side['num_gaps_loaded']:,}" for side in sides))
    table.add_row("chunk budget", "", f"{result['aggregated']['chunk_budget']:,} tokens")
    console().print(table)


def print_engine(result: Mapping[str, Any]) -> None:
    columns = ("batch", "thr.", "tokens/s", "generate", "ratio", "95 %", "whole", "read", "n")
    table = _table("shape", *columns)
    for row in result["rows"]:
        table.add_row(
            row["shape"],
            f"{row['batch']}",
            f"{row['threads']}",
            f"{row['baton_tokens_per_s']:,.1f}",
            f"{row['transformers_tokens_per_s']:,.1f}",
            f"{row['ratio']:.2f}",
            _interval(row["ci95"], 2),
            f"{row['with_prompts']['ratio']:.2f}",
            f"{row['share_of_read']:.0%}",
            f"{row['n']}",
        )
    out = console()
    out.print(table)
    out.print("whole: the ratio with the prompts · read: weights, of this bandwidth", style="dim")
    for threads in dict.fromkeys(row["threads"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["threads"] == threads]
        read = max(row["read_gb_per_s"] for row in rows)
        gemm = max(row["gemm_gflop_per_s"] for row in rows)
        limits = f"memory gives {read:.1f} GB/s, a GEMM {gemm:.0f} GFLOP/s"
        out.print(f"{count(threads, 'thread')}: {limits}", style="dim")


def print_kv(result: Mapping[str, Any]) -> None:
    table = _table("transport", "checksum", "MB", "GB/s", "limit", "fraction", "95 %", "n")
    for row in result["rows"]:
        table.add_row(
            row["transport"],
            "on" if row["checksum"] else "off",
            f"{row['payload_bytes'] / 1e6:,.1f}",
            f"{row['gb_per_s']:.2f}",
            f"{row['limit_gb_per_s']:.2f} {row['limit']}",
            f"{row['fraction']:.2f}",
            _interval(row["ci95"], 2),
            f"{row['n']}",
        )
    hidden = _table("transfer / prefill", "hidden", "95 %", "hidden, serial", "n")
    for row in result["hidden"]:
        hidden.add_row(
            f"{row['transfer_over_prefill']}",
            f"{row['hidden_fraction']:.3f}",
            _interval(row["ci95"], 3),
            f"{row['serial_hidden_fraction']:.3f}",
            f"{row['n']}",
        )
    out = console()
    out.print(table)
    out.print(hidden)
    for each in result["skipped"]:
        out.print(f"{each['transport']} was skipped: {each['reason']}", style="dim")


def _table(first: str, *columns: str) -> Table:
    table = plain_table()
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _interval(ends: Sequence[float], digits: int) -> str:
    low, high = ends
    return f"{low:.{digits}f}–{high:.{digits}f}"
