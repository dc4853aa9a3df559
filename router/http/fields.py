"""Takes typed fields out of a JSON object, naming the field that has the wrong type.

`null` is the same as absent, as clients that send every field expect. Ranges are not checked here:
`baton.sampling_ranges` and `router.validation` do that for both faces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from baton.errors import InvalidArgument


class Fields:
    """One object of a request; `path` is where it stands. Remembers which fields were asked for."""

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, dict):
            raise InvalidArgument(f"must be an object, is {_kind(values)}", field=path)
        self._values = {name: value for name, value in values.items() if value is not None}
        self._path = path
        self._taken: set[str] = set()

    def name(self, field: str) -> str:
        return f"{self._path}.{field}" if self._path else field

    def any(self, field: str) -> Any:
        self._taken.add(field)
        return self._values.get(field)

    def left(self) -> Iterable[tuple[str, Any]]:
        """What nobody has asked for."""
        return ((n, value) for n, value in self._values.items() if n not in self._taken)

    def string(self, field: str) -> str | None:
        value = self.any(field)
        return None if value is None else as_string(value, self.name(field))

    def integer(self, field: str) -> int | None:
        value = self.any(field)
        return None if value is None else as_integer(value, self.name(field))

    def number(self, field: str) -> float | None:
        value = self.any(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidArgument(f"must be a number, is {_kind(value)}", field=self.name(field))
        return _as_float(value, self.name(field)) if value is not None else None

    def boolean(self, field: str, default: bool = False) -> bool:
        value = self.any(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidArgument(
                f"must be true or false, is {_kind(value)}", field=self.name(field)
            )
        return value

    def array(self, field: str) -> list[Any] | None:
        value = self.any(field)
        if value is not None and not isinstance(value, list):
            raise InvalidArgument(f"must be an array, is {_kind(value)}", field=self.name(field))
        return value

    def object(self, field: str) -> Fields | None:
        value = self.any(field)
        return None if value is None else Fields(value, self.name(field))

    def integers(self, field: str) -> tuple[int, ...]:
        return as_integers(self.array(field) or [], self.name(field))

    def numbers_by_integer(self, field: str) -> dict[int, float]:
        """An object whose keys are integers in quotes (JSON has no other keys)."""
        entries = self.object(field)
        if entries is None:
            return {}
        found: dict[int, float] = {}
        for key in list(entries._values):
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise InvalidArgument(
                    f"keys must be token ids, one is {key[:40]!r}", field=self.name(field)
                )
            found[int(key)] = entries.number(key) or 0.0
        return found


def as_string(value: Any, name: str) -> str:
    """Refuses a lone surrogate (from an escape such as \\ud800), which no UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidArgument(f"must be a string, is {_kind(value)}", field=name)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(
                f"holds a lone surrogate at character {error.start}", field=name
            ) from error
    return value


def as_integer(value: Any, name: str) -> int:
    if type(value) is int:
        return value
    raise InvalidArgument(f"must be an integer, is {_kind(value)}", field=name)


def as_integers(values: list[Any], name: str) -> tuple[int, ...]:
    if any(type(value) is not int for value in values):
        raise InvalidArgument("must be an array of integers", field=name)
    return tuple(values)


def _as_float(value: float, name: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgument("is too large for a number", field=name) from error


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"{value:g}" if isinstance(value, float) else "an integer"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "null"
