"""The `baton` command: its subcommands by name, and how any of them ends.

0 done · 1 failed, with one red line on stderr that names the field · 2 used wrongly · 130 Ctrl-C.
Under --json a failure, too, leaves one JSON object as the last line of stdout.
"""

from __future__ import annotations

import os
from typing import Any

import click

from baton.cli.lazy import LazyCommand, LazyGroup
from baton.cli.options import wants_json
from baton.errors import BatonError

# Which extra brings a package that a plain `pip install` leaves out.
_EXTRAS = {
    "torch": "worker",
    "numpy": "worker",
    "safetensors": "worker",
    "ray": "cluster",
    "matplotlib": "bench",
}

_COMMANDS = {
    "up": LazyCommand("baton.cli.up:up", "Start a router and workers, and run until Ctrl-C."),
    "generate": LazyCommand("baton.cli.generate:generate", "Continue a prompt, streaming."),
    "chat": LazyCommand("baton.cli.chat:chat", "Talk with a model, turn by turn."),
    "status": LazyCommand("baton.cli.status:status", "Show workers, their load, and requests."),
    "top": LazyCommand("baton.cli.status:top", "Watch workers and requests, full-screen."),
    "drain": LazyCommand("baton.cli.drain:drain", "Tell a worker to finish what runs, and leave."),
    "route": LazyCommand("baton.cli.route:route", "Ask which workers a prompt would get, and why."),
    "replay": LazyCommand("baton.cli.replay:replay", "Run a trace through a simulated cluster."),
    "profile": LazyCommand(
        "baton.cli.profile:profile", "Measure this machine's engine for replays."
    ),
    "bench": LazyCommand("baton.cli.bench:bench", "Measure."),
    "router": LazyCommand("baton.cli.router:router", "Run a router: gRPC and OpenAI HTTP."),
    "worker": LazyCommand(
        "baton.cli.worker:worker", "Run a worker and register it with its routers."
    ),
}

# gRPC tells of every peer that goes away, on a terminal that is the user's. Read when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # nothing here forks and goes on


class Baton(LazyGroup):
    """The root, through which every subcommand's failure passes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BatonError as error:
            _fail(ctx, error)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise click.ClickException(
                f"{error.name} is not installed: pip install 'baton-serving[{extra}]'"
            ) from error
        except KeyboardInterrupt:
            ctx.exit(130)


def _fail(ctx: click.Context, error: BatonError) -> None:
    retry = f" (retry after {error.retry_after_s:.3g} s)" if error.retry_after_s else ""
    click.secho(f"error: {error}{retry}", fg="red", err=True)
    if wants_json(ctx):
        from baton.cli.output import print_json

        print_json({"error": error})
    ctx.exit(1)


@click.command(
    cls=Baton,
    lazy_commands=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="baton-serving", prog_name="baton")
def main() -> None:
    """Serve large language models with prefill and decode on separate workers."""


if __name__ == "__main__":
    main()
