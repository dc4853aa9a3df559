"""Options that many commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from baton.errors import ConfigError

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


PORT = click.IntRange(0, 65_535)


def log_level_option(command: Function) -> Function:
    levels = click.Choice(["debug", "info", "warning", "error"], case_sensitive=False)
    return click.option("--log-level", type=levels, default="info", show_default=True)(command)


@contextmanager
def fields_as_options() -> Iterator[None]:
    """Errors of the configuration name the option where one is at fault, or the only way that was left out,
    instead of the field that it stands for."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.message, field=_as_option(error.field)) from error


def _as_option(field: str) -> str:
    source, _, path = field.rpartition(": ")
    if source not in ("", "flags"):
        return field  # of a file, or a variable
    name = path.rpartition(".")[2]
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name == name:
            given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            return max(parameter.opts, key=len) if given or not _elsewhere(context, name) else field
    return field


def _elsewhere(context: click.Context, name: str) -> bool:
    """Whether a file or a variable may have said it."""
    end = f"_{name.upper()}"
    variables = (each for each in os.environ if each.startswith("BATON_"))
    return bool(context.params.get("config")) or any(each.endswith(end) for each in variables)


def wants_json(ctx: click.Context) -> bool:
    return bool(ctx.meta.get(_JSON))


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value
