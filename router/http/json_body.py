"""Reads JSON of any length without keeping the interpreter to itself: `json.loads` is one call in C, during
which no other thread of the process runs, and of 16 MiB it takes seconds.

Here the interpreter walks through arrays and objects, and C reads pieces: runs of integers, and long strings
bit by bit. It gives what `json.loads` gives, but in a long text an array of more than `max_entries` is
refused as soon as it is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

from baton.errors import InvalidArgument

_SHORT_CHARS = 16_384  # are read in C: less than a millisecond
_LONG_CHARS = 1 << 18  # before that, no string is so long that reading it in C is felt

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_INTEGERS = re.compile(r"(?:[ \t\n\r]*(?:0|[1-9][0-9]{0,17})[ \t\n\r]*,){1,1000}")
# A piece of a string, of 100,000 characters at most. Escaped surrogate pairs stay together. It ends before
# whatever is wrong, which C is then asked about.
_PIECE = re.compile(
    r'(?:[^"\\\x00-\x1f]{1,200}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\u[0-9a-fA-F]{4}"
    r'|\\["\\/bfnrt]'
    r"){1,500}"
)

Pairs = list[tuple[str, Any]]


def read(text: str, make_object: Callable[[Pairs], Any], max_entries: int) -> Any:
    """Raises ValueError where `text` is no JSON, InvalidArgument where an array is too long."""
    if len(text) < _SHORT_CHARS:
        return json.loads(text, object_pairs_hook=make_object)
    decoder = _Decoder(make_object, max_entries, in_pieces=len(text) > _LONG_CHARS)
    return decoder.decode(text)


class _Decoder(json.JSONDecoder):
    def __init__(
        self, make_object: Callable[[Pairs], Any], max_entries: int, *, in_pieces: bool
    ) -> None:
        super().__init__(object_pairs_hook=make_object)
        if in_pieces:
            self.parse_string = _string
        self.parse_array = partial(_array, max_entries)
        self.scan_once = py_make_scanner(self)


def _string(text: str, start: int, strict: bool = True) -> tuple[str, int]:
    """From behind its first quote on. Also the index behind its last."""
    pieces: list[str] = []
    at = start
    while piece := _PIECE.match(text, at):
        pieces.append(scanstring(piece[0] + '"', 0, strict)[0])
        at = piece.end()
        if text.startswith('"', at):
            return "".join(pieces), at + 1
    try:
        rest, end = scanstring(text, at, strict)  # nothing, or what is wrong
    except json.JSONDecodeError as error:
        if error.pos == at - 1:  # it never ends
            raise json.JSONDecodeError(error.msg, text, start - 1) from None
        raise
    return "".join((*pieces, rest)), end


def _array(
    max_entries: int,
    opened: tuple[str, int],
    scan_once: Callable[[str, int], tuple[Any, int]],
) -> tuple[list[Any], int]:
    """From behind its bracket on. Also the index behind the closing one."""
    text, at = opened
    values: list[Any] = []
    at = _skip(text, at)
    if text[at : at + 1] == "]":
        return values, at + 1
    while True:
        while integers := _INTEGERS.match(text, at):
            values += map(int, integers[0][:-1].split(","))
            at = integers.end()
            _check_length(values, max_entries)
        at = _skip(text, at)
        try:
            value, at = scan_once(text, at)
        except StopIteration as stop:
            raise json.JSONDecodeError("Expecting value", text, stop.value) from None
        values.append(value)
        _check_length(values, max_entries)
        at = _skip(text, at)
        match text[at : at + 1]:
            case "]":
                return values, at + 1
            case ",":
                at += 1
            case _:
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)


def _skip(text: str, at: int) -> int:
    space = _WHITESPACE.match(text, at)
    assert space is not None  # it matches nothing, too
    return space.end()


def _check_length(values: list[Any], max_entries: int) -> None:
    if len(values) > max_entries:
        raise InvalidArgument(
            f"an array has more than {max_entries} entries: no model here has so large a context",
            field="body",
        )
