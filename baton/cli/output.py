"""What commands print: JSON and plain text on stdout, everything around it on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from baton.errors import BatonError

SEPARATOR = " · "


def console() -> Console:
    """For tables that are a command's result."""
    return Console(highlight=False)


def chrome() -> Console:
    """For everything that accompanies a result: stderr, so that stdout can be piped."""
    return Console(stderr=True, highlight=False)


def plain_table(*, show_header: bool = True) -> Table:
    """Columns two spaces apart, without lines."""
    return Table(
        box=None, padding=(0, 1), pad_edge=False, header_style="dim", show_header=show_header
    )


def print_json(value: object) -> None:
    click.echo(json.dumps(jsonable(value), allow_nan=False))


def jsonable(value: Any) -> Any:
    """Dataclasses and named tuples by field, enums by name in lower case, bytes in hex; JSON knows no NaN or
    infinity: null."""
    match value:
        case BatonError():
            return {"code": value.code, "message": value.message, "field": value.field}
        case Enum():
            return value.name.lower()
        case _ if dataclasses.is_dataclass(value):
            return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case tuple() if hasattr(value, "_asdict"):
            return jsonable(value._asdict())
        case Mapping():
            return {str(key): jsonable(each) for key, each in value.items()}
        case list() | tuple():
            return [jsonable(each) for each in value]
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return None
        case _:
            return value


def milliseconds(seconds: float) -> str:
    """Three digits are enough for a person: 0.42 ms, 12.3 ms, 1.23 s."""
    if seconds == 0:
        return "0 ms"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    ms = 1000 * seconds
    return f"{ms:.{2 if ms < 10 else 1 if ms < 100 else 0}f} ms"


def joined(parts: Iterable[str], width: int) -> str:
    """The parts in lines of at most `width`, broken between parts only."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(SEPARATOR) + len(part) <= width:
            lines[-1] += SEPARATOR + part
        else:
            lines.append(part)
    return "\n".join(lines)


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


# Generated text may hold anything, also a sequence that reprograms a terminal.
_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}
_HARMLESS = dict.fromkeys(_CONTROLS, "\N{REPLACEMENT CHARACTER}")


def write_text(text: str) -> None:
    """Generated text to stdout at once: unchanged into a pipe, harmless on a terminal."""
    sys.stdout.write(text.translate(_HARMLESS) if sys.stdout.isatty() else text)
    sys.stdout.flush()
