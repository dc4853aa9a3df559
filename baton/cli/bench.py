"""`baton bench`: the measurements by name. Each lies in `baton/bench/` and knows nothing of terminals."""

from __future__ import annotations

import click

from baton.cli.lazy import LazyCommand, LazyGroup

_COMMANDS = {
    "serve": LazyCommand("baton.cli.bench_serve:serve", "Put load on a server that runs."),
    "engine": LazyCommand(
        "baton.cli.bench_local:engine", "Tokens/s of the engine against transformers."
    ),
    "kv": LazyCommand("baton.cli.bench_local:kv", "The hand-off against the machine's limits."),
    "ttft": LazyCommand(
        "baton.cli.bench_local:ttft", "Time to first token against an aggregated worker."
    ),
    "faces": LazyCommand(
        "baton.cli.bench_local:faces", "Time to first text over HTTP beside gRPC."
    ),
    "interference": LazyCommand(
        "baton.cli.bench_local:interference", "What arriving prompts do to streams that decode."
    ),
    "router": LazyCommand(
        "baton.cli.bench_router:router", "What a router's decisions cost, and what it passes on."
    ),
    "perplexity": LazyCommand(
        "baton.cli.bench_perplexity:perplexity",
        "What the KV cache's dtype does to a model's perplexity.",
    ),
}


@click.command(cls=LazyGroup, lazy_commands=_COMMANDS)
def bench() -> None:
    """Measure."""
