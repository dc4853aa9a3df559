"""`baton status` and `baton top`: what the cluster is doing, once or again and again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from baton.cli.keys import Wait, sleep
from baton.cli.options import address_option, json_option

if TYPE_CHECKING:
    from baton.cli.cluster_view import Snapshot
    from baton.client.sync_client import Client

_NUM_REQUESTS = 20
_EVERY_S = 1.0


@click.command()
@click.option("--requests", "with_requests", is_flag=True, help="The last requests, too.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@address_option
@json_option
def status(with_requests: bool, watch: bool, addresses: tuple[str, ...], as_json: bool) -> None:
    """Show workers, their load, and with --requests where the last requests' time went.

    With --json and --watch together, one object per second.
    """
    from baton.cli.connect import connected

    with connected(addresses) as client:
        snapshots = _snapshots(client, _NUM_REQUESTS if with_requests else 0, again=watch)
        _show(snapshots, as_json=as_json)


@click.command()
@address_option
@json_option
def top(addresses: tuple[str, ...], as_json: bool) -> None:
    """Watch workers and requests, full-screen, until q or Ctrl-C. (--json: one object per second.)"""
    from baton.cli.connect import connected
    from baton.cli.keys import quit_key

    with connected(addresses) as client, quit_key() as wait:
        snapshots = _snapshots(client, _NUM_REQUESTS, again=True, wait=wait)
        _show(snapshots, as_json=as_json, full_screen=True)


def _snapshots(
    client: Client, num_requests: int, *, again: bool, wait: Wait = sleep
) -> Iterator[Snapshot]:
    """`wait`: whether somebody has seen enough meanwhile."""
    from baton.cli.cluster_view import Snapshot

    snapshot = Snapshot.take(client, num_requests)
    yield snapshot
    while again and not wait(_EVERY_S):
        snapshot = Snapshot.take(client, num_requests, before=snapshot)
        yield snapshot


def _show(snapshots: Iterator[Snapshot], *, as_json: bool, full_screen: bool = False) -> None:
    """The first as it is, those that follow in its place where the terminal can do that."""
    from rich.live import Live

    from baton.cli.cluster_view import render, snapshot_json
    from baton.cli.output import console, print_json

    if as_json:
        for snapshot in snapshots:
            print_json(snapshot_json(snapshot))
        return
    out = console()
    if not out.is_terminal or out.is_dumb_terminal:
        for snapshot in snapshots:
            out.print(render(snapshot))
        return
    with Live(console=out, screen=full_screen, auto_refresh=False) as live:
        for snapshot in snapshots:
            live.update(render(snapshot), refresh=True)
