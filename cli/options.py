"""Options that many commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

_JSON = "baton.json"  # key in click's `meta`, which a command shares with the groups above it


def json_option(command: Function) -> Function:
    """`--json`, as argument `as_json`: the last line printed on stdout is one JSON object."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        is_eager=True,
        callback=_remember,
        help="End with one JSON object on stdout; everything else goes to stderr.",
    )(command)


def address_option(command: Function) -> Function:
    """`--address`, repeatable, as argument `addresses`."""
    return click.option(
        "--address",
        "addresses",
        multiple=True,
        default=("127.0.0.1:50051",),
        envvar="BATON_ADDRESS",
        show_default=True,
        show_envvar=True,
        metavar="HOST:PORT",
        help="A router's gRPC; repeatable: others take over where one fails.",
    )(command)


def wants_json(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(_JSON))


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value
