"""Typed reading of one JSON object: every complaint names the field and the file. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from baton.errors import ConfigError

REQUIRED: Final = object()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", field=path.name) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}", field=path.name) from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object", field=path.name)
    return value


class JsonFields:
    """The fields of one object. A field that is absent or null takes `default`, if it has one."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self.prefix = prefix

    def fail(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{problem} (in {self.path})", field=f"{self.prefix}{name}")

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, default: Any = REQUIRED) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            raise self.fail(name, "is missing")
        return default

    def integer(self, name: str, default: Any = REQUIRED, minimum: int = 1) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.fail(name, f"must be an integer of at least {minimum}, found {value!r}")
        return value

    def number(self, name: str, default: Any = REQUIRED) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
            raise self.fail(name, f"must be a number that is not negative, found {value!r}")
        return float(value)

    def positive(self, name: str, default: Any = REQUIRED) -> float:
        value = self.number(name, default)
        if value == 0:
            raise self.fail(name, "must be greater than 0")
        return value

    def boolean(self, name: str, default: Any = REQUIRED) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, f"must be true or false, found {value!r}")
        return value

    def text(self, name: str, default: Any = REQUIRED) -> str:
        value = self.get(name, default)
        if not isinstance(value, str):
            raise self.fail(name, f"must be a string, found {value!r}")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One token id or a list of them; absent is none."""
        value = self.get(name, ())
        ids = [value] if isinstance(value, int) else value
        if not isinstance(ids, list | tuple) or not all(
            isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids
        ):
            raise self.fail(name, f"must be a token id or a list of them, found {value!r}")
        return tuple(ids)

    def object(self, name: str) -> JsonFields:
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.fail(name, f"must be an object, found {value!r}")
        return JsonFields(self.path, value, f"{self.prefix}{name}.")
