"""`baton drain`: a worker's orderly leave."""

from __future__ import annotations

import click

from baton.cli.options import address_option, json_option


@click.command()
@click.argument("worker")
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for the requests that run (default: the worker's own).",
)
@address_option
@json_option
def drain(worker: str, grace_s: float | None, addresses: tuple[str, ...], as_json: bool) -> None:
    """Tell WORKER to take no new requests, finish those that run, and leave.

    What still runs when its time is over goes on elsewhere. `baton status` lists the workers.
    """
    from baton.cli.connect import connected
    from baton.cli.output import chrome, print_json

    with connected(addresses) as client:
        client.drain(worker, grace_s=grace_s or 0.0)
    chrome().print(f"{worker} is draining")
    if as_json:
        print_json({"worker": worker, "draining": True})
