"""Published traces of production services, read as planned requests.

Three formats, told apart by how they begin, gzipped or not: Mooncake's JSONL (milliseconds, lengths, and
hashes of 512-token prompt blocks that tell which prefixes were shared), the CSV of Azure's LLM inference
traces (time of day, lengths), and what `baton router --record` wrote.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from baton import decision_records
from baton.errors import ConfigError
from bench.workload import PlannedRequest

MOONCAKE_BLOCK_SIZE = 512

_GZIP_MAGIC = b"\x1f\x8b"


def read_trace(path: Path, *, limit: int | None = None) -> list[PlannedRequest]:
    """The first `limit` requests; `due_s` counts from the first one's arrival. Raises ConfigError
    that names the file, the line and the field."""
    try:
        with _open(path) as file:
            read = _reader(file.readline())
            file.seek(0)
            requests = list(islice(read(file, path), limit))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", field=str(path)) from error
    if not requests:
        raise ConfigError("holds no requests", field=str(path))
    start_s = requests[0].due_s or 0.0
    return [replace(each, due_s=max(0.0, (each.due_s or 0.0) - start_s)) for each in requests]


def _open(path: Path) -> TextIO:
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rt", encoding="utf-8") if is_gzip else path.open(encoding="utf-8")


def _reader(first_line: str) -> Callable[[TextIO, Path], Iterator[PlannedRequest]]:
    if first_line.strip() == decision_records.HEADER:
        return _record
    return _mooncake if first_line.startswith("{") else _azure


def _record(file: TextIO, path: Path) -> Iterator[PlannedRequest]:
    """Requests that were sent to a worker; one that was sent again is one more."""
    next(file)
    numbers: dict[str, int] = defaultdict(lambda: len(numbers))  # of blocks, by id
    waiting: list[PlannedRequest] = []
    sent: dict[int, PlannedRequest] = {}
    for index, line in enumerate(file, 2):
        try:
            at_s, name, *arguments = json.loads(line)
            if name == "route":
                _, _, num_tokens, ids, block_size, *_ = arguments
                hashes = tuple(numbers[each] for each in ids)
                waiting = [PlannedRequest(0, num_tokens, 1, at_s, hashes, block_size)]
            elif name == "commit":
                sent[arguments[0]] = waiting.pop()
            elif name == "end":
                number, num_output_tokens = arguments
                sent[number] = replace(sent[number], num_output_tokens=max(1, num_output_tokens))
        except (ValueError, TypeError, LookupError) as error:
            problem = f"is no line of a record: {error!r}"
            raise ConfigError(problem, field=f"{path}:{index}") from error
    for index, number in enumerate(sorted(sent)):
        yield replace(sent[number], index=index)


def _mooncake(file: TextIO, path: Path) -> Iterator[PlannedRequest]:
    for index, line in enumerate(file):
        where = f"{path}:{index + 1}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"is not JSON: {error}", field=where) from error
        if not isinstance(fields, dict):
            raise ConfigError("must be an object", field=where)
        yield PlannedRequest(
            index=index,
            num_prompt_tokens=_length(fields, "input_length", where),
            num_output_tokens=_length(fields, "output_length", where),
            due_s=_number(fields, "timestamp", where) / 1000,
            block_hashes=_hashes(fields, where),
            block_size=MOONCAKE_BLOCK_SIZE,
        )


def _azure(file: TextIO, path: Path) -> Iterator[PlannedRequest]:
    for index, fields in enumerate(csv.DictReader(file)):
        where = f"{path}:{index + 2}"
        yield PlannedRequest(
            index=index,
            num_prompt_tokens=_length(fields, "ContextTokens", where),
            num_output_tokens=_length(fields, "GeneratedTokens", where),
            due_s=_time_of_day(fields, "TIMESTAMP", where),
        )


def _number(fields: dict[str, Any], name: str, where: str) -> float:
    if name not in fields:
        raise ConfigError("is missing", field=f"{where}: {name}")
    try:
        number = float(fields[name])
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"must be a number, is {fields[name]!r}", field=f"{where}: {name}")
    return number


def _length(fields: dict[str, Any], name: str, where: str) -> int:
    """At least 1: traces hold a few requests without output, and no server can send those."""
    return max(1, int(_number(fields, name, where)))


def _time_of_day(fields: dict[str, Any], name: str, where: str) -> float:
    if name not in fields:
        raise ConfigError("is missing", field=f"{where}: {name}")
    try:
        return datetime.fromisoformat(fields[name]).timestamp()
    except (TypeError, ValueError) as error:
        problem = f"must be a date and time, is {fields[name]!r}"
        raise ConfigError(problem, field=f"{where}: {name}") from error


def _hashes(fields: dict[str, Any], where: str) -> tuple[int, ...]:
    hashes = fields.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(type(each) is int for each in hashes):
        raise ConfigError("must be an array of integers", field=f"{where}: hash_ids")
    return tuple(hashes)
