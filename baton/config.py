"""The table of times, and how a frozen dataclass is read from TOML, environment and flags.

It knows no role's configuration: each role declares its own dataclass and calls `load`. Later
sources win: the dataclass's defaults, the TOML section, `BATON_<SECTION>_<FIELD>`, flags. A key
that no field has and a value that its field cannot hold are `ConfigError`s that name the source and
the key. Pure: nothing here knows the network.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from baton.errors import ConfigError

Config = TypeVar("Config")

_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Times:
    """Every bound on waiting in the cluster. The end of a stream is the normal way a death is seen;
    these bound what happens where no stream ends."""

    worker_lease_s: float = 5.0  # a worker not heard of for this long has left
    report_interval_s: float = 1.0  # between a worker's reports, which renew its lease
    block_hold_s: float = 10.0  # a prefill worker keeps sources for a retry; extended per peer
    answer_timeout_s: float = 5.0  # a prefill worker that was asked has said nothing at all
    progress_timeout_s: float = 1.0  # neither a byte nor a word on an active transfer
    fence_timeout_s: float = 2.0  # a peer that did not answer `Fenced` by then is killed
    watchdog_s: float = 5.0  # work waits and no step completes: see `watchdog_after`
    slow_client_s: float = 30.0  # a client that leaves its tokens unread for this long is cancelled

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError("must be more than 0 seconds", field=field.name)
        if self.worker_lease_s <= self.report_interval_s:
            raise ConfigError(
                f"must be more than report_interval_s ({self.report_interval_s}): every lease "
                "would run out between two reports",
                field="worker_lease_s",
            )

    def watchdog_after(self, longest_step_s: float) -> float:
        """Seconds without a completed step, while work waits, after which a worker counts as
        hung."""
        return max(self.watchdog_s, 10 * longest_step_s)


def check_port(port: int, field: str) -> None:
    """0 stands for any free one."""
    if not 0 <= port <= _MAX_PORT:
        raise ConfigError(f"must be from 0 to {_MAX_PORT}, not {port}", field=field)


def load(
    cls: type[Config],
    *,
    toml: Path | None,
    section: str,
    env_prefix: str = "BATON",
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Config:
    """Reads the dataclass `cls`: section `[section]` of `toml` (dots descend), then the environment
    (`<env_prefix>_<SECTION>_<FIELD>`; a nested dataclass's fields follow its own name), then
    `flags`, where None means not given. Raises `ConfigError` naming source and key."""
    values: dict[str, Any] = {}
    if toml is not None:
        values = _values(cls, _section(toml, section), _Source(str(toml), section, text=False))
    prefix = f"{env_prefix}_{section}".upper().replace(".", "_").replace("-", "_") + "_"
    _merge(values, _from_environment(cls, prefix, os.environ if env is None else env))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    _merge(values, _values(cls, given, _Source("flags", "", text=False)))
    config: Config = _build(cls, values, section)
    return config


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a value came from. In a `text` source (the environment) every value is a string."""

    name: str
    path: str
    text: bool

    def at(self, key: str) -> _Source:
        return replace(self, path=f"{self.path}.{key}" if self.path else key)

    def error(self, message: str) -> ConfigError:
        return ConfigError(message, field=f"{self.name}: {self.path}")


def _section(toml: Path, section: str) -> Mapping[str, object]:
    try:
        document: object = tomllib.loads(toml.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", field=str(toml)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not TOML: {error}", field=str(toml)) from error
    for name in section.split("."):
        if not isinstance(document, dict):
            raise ConfigError("must be a table", field=f"{toml}: {section}")
        document = document.get(name, {})
    if not isinstance(document, dict):
        raise ConfigError("must be a table", field=f"{toml}: {section}")
    return document


def _values(cls: type, given: Mapping[str, object], source: _Source) -> dict[str, Any]:
    """`given` with every value converted to its field's type; nested dataclasses stay dicts."""
    hints = get_type_hints(cls)
    values = {}
    for key, value in given.items():
        if key not in hints:
            raise source.at(key).error(_unknown(key, hints))
        values[key] = _convert(hints[key], value, source.at(key))
    return values


def _from_environment(cls: type, prefix: str, env: Mapping[str, str]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    nested = {
        f"{prefix}{name.upper()}_": name for name, hint in hints.items() if is_dataclass(hint)
    }
    known = {prefix + name.upper(): name for name, hint in hints.items() if not is_dataclass(hint)}
    values: dict[str, Any] = {}
    for variable, text in env.items():
        if _is_of_kubernetes(variable, text, env):
            continue
        if not variable.startswith(prefix) or any(variable.startswith(start) for start in nested):
            continue
        source = _Source("environment", variable, text=True)
        if variable not in known:
            raise source.error(_unknown(variable, known))
        values[known[variable]] = _convert(hints[known[variable]], text, source)
    for start, name in nested.items():
        if inner := _from_environment(hints[name], start, env):
            values[name] = inner
    return values


def _is_of_kubernetes(variable: str, text: str, env: Mapping[str, str]) -> bool:
    """Whether Kubernetes set it, for a Service that is called like one of our sections: NAME_SERVICE_HOST,
    with NAME_SERVICE_PORT[_...], NAME_PORT=tcp://... and NAME_PORT_1234_TCP[_...] beside it."""
    found = _SERVICE_VARIABLE.fullmatch(variable)
    if found is None or f"{found['service']}_SERVICE_HOST" not in env:
        return False
    return not found["url"] or "://" in text


_SERVICE_VARIABLE = re.compile(
    r"(?P<service>\w+?)_(SERVICE_HOST|SERVICE_PORT(_\w+)?|(?P<url>PORT)"
    r"|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)


def _unknown(key: str, known: Mapping[str, object]) -> str:
    close = get_close_matches(key, known, n=1)
    return "is not known" + (f"; did you mean {close[0]}?" if close else "")


def _convert(hint: Any, value: object, source: _Source) -> Any:
    """`value` as the type `hint`, or an error that names the source and what it should have
    been."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _convert_nested(hint, value, source)
    if origin in (Union, UnionType):
        return _convert_union(arguments, value, source)
    if origin is Literal:
        if value not in arguments:
            choices = ", ".join(repr(argument) for argument in arguments)
            raise source.error(f"must be one of {choices}, not {value!r}")
        return value
    if origin is tuple and arguments[1:] == (...,):
        return _convert_list(arguments[0], value, source)
    return _convert_scalar(hint, value, source)


def _convert_nested(cls: Any, value: object, source: _Source) -> Any:
    if isinstance(value, cls):
        return {field.name: getattr(value, field.name) for field in fields(cls)}
    if not isinstance(value, Mapping):
        raise source.error(f"must be a table, not {value!r}")
    return _values(cls, value, source)


def _convert_union(members: tuple[Any, ...], value: object, source: _Source) -> Any:
    """The first member that can hold the value; a value of exactly a member's type keeps it."""
    if value is None and NoneType in members:
        return None
    wanted = [member for member in members if member is not NoneType]
    if not source.text and type(value) in wanted:
        return value
    failures = []
    for member in wanted:
        try:
            return _convert(member, value, source)
        except ConfigError as error:
            failures.append(error.message)
    raise source.error(" or ".join(failures))


def _convert_list(hint: Any, value: object, source: _Source) -> tuple[Any, ...]:
    """A list of `hint`s; in text, comma-separated."""
    if source.text and isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return tuple(_convert_scalar(hint, part, source) for part in parts if part)
    if isinstance(value, list | tuple) and all(type(item) is hint for item in value):
        return tuple(value)
    raise source.error(f"must be a list of {_PLURALS[hint]}, not {value!r}")


_BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _convert_scalar(hint: Any, value: object, source: _Source) -> Any:
    if source.text and isinstance(value, str) and hint in (bool, int, float):
        try:
            return _BOOLS[value.lower()] if hint is bool else hint(value)
        except (KeyError, ValueError):
            raise source.error(f"must be {_NAMES[hint]}, not {value!r}") from None
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise source.error(f"{value} cannot be found: {error}") from error
    if hint not in _NAMES:
        raise TypeError(f"{source.path}: configuration fields cannot have type {hint}")
    if type(value) is not hint:  # not isinstance: a bool is no int here
        raise source.error(f"must be {_NAMES[hint]}, not {value!r}")
    return value


_NAMES = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Path: "a path",
}
_PLURALS = {str: "strings", int: "whole numbers"}


def _merge(values: dict[str, Any], later: Mapping[str, Any]) -> None:
    for key, value in later.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = value


def _build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    hints = get_type_hints(cls)
    arguments = dict(values)
    for field in fields(cls):
        where = f"{path}.{field.name}"
        if is_dataclass(hints[field.name]) and field.name in arguments:
            arguments[field.name] = _build(hints[field.name], arguments[field.name], where)
        elif field.name not in arguments and field.default is field.default_factory is MISSING:
            raise ConfigError("is required", field=where)
    return cls(**arguments)
