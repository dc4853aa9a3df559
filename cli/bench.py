"""`baton bench`: the measurements by name. Each lies in `bench/` and knows nothing of terminals."""

from __future__ import annotations

import click

from cli.lazy import LazyCommand, LazyGroup

_COMMANDS = {
    "serve": LazyCommand("cli.bench_serve:serve", "Put load on a server that runs."),
}


@click.command(cls=LazyGroup, lazy_commands=_COMMANDS)
def bench() -> None:
    """Measure."""
