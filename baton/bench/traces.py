"""Published traces of production services, read as planned requests.

Three formats, told apart by how they begin, gzipped or not: Mooncake's JSONL (milliseconds, lengths, and
hashes of 512-token prompt blocks that tell which prefixes were shared), the CSV of Azure's LLM inference
traces (time of day, lengths), and what `baton router --record` wrote. Byte order marks, CRLF and empty lines
are no part of them, and requests may stand in any order.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from baton import decision_records
from baton.bench.workload import PlannedRequest
from baton.errors import ConfigError

MOONCAKE_BLOCK_SIZE = 512

_MAX_LENGTH = 100_000_000  # tokens: more is no length of a request
_NUM_HASHES = 2**64

_GZIP_MAGIC = b"\x1f\x8b"


def read_trace(path: Path, *, limit: int | None = None) -> list[PlannedRequest]:
    """The first `limit` requests of the file, as they arrived; `due_s` counts from the first one's arrival.
    Raises ConfigError that names the file, the line and the field."""
    try:
        with _open(path) as file:
            read = _reader(file.readline())
            file.seek(0)
            requests = list(islice(read(file, path), limit))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"cannot be read: {error}", field=str(path)) from error
    if not requests:
        raise ConfigError("holds no requests", field=str(path))
    requests.sort(key=_arrived_s)
    start_s = _arrived_s(requests[0])
    return [replace(each, due_s=_arrived_s(each) - start_s) for each in requests]


def _arrived_s(request: PlannedRequest) -> float:
    return request.due_s or 0.0


def _open(path: Path) -> TextIO:
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
    return (
        gzip.open(path, "rt", encoding="utf-8-sig") if is_gzip else path.open(encoding="utf-8-sig")
    )


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
    for number_of_line, line in enumerate(file, 2):
        if not line.strip():
            continue
        where = f"{path}:{number_of_line}"
        try:
            at_s, name, *arguments = _json(line, where)
            if name == "route":
                _, _, num_tokens, ids, block_size, *_ = arguments
                fields = {"at": at_s, "num_tokens": num_tokens, "block_size": block_size}
                hashes = tuple(numbers[each] for each in ids)
                waiting = [
                    PlannedRequest(
                        index=0,
                        num_prompt_tokens=_length(fields, "num_tokens", where),
                        num_output_tokens=1,
                        due_s=_number(fields, "at", where),
                        block_hashes=hashes,
                        block_size=_length(fields, "block_size", where),
                    )
                ]
            elif name == "commit":
                sent[arguments[0]] = waiting.pop()
            elif name == "end":
                number, num_output_tokens = arguments
                length = _length(
                    {"num_output_tokens": num_output_tokens}, "num_output_tokens", where
                )
                sent[number] = replace(sent[number], num_output_tokens=length)
        except (ValueError, TypeError, LookupError) as error:
            problem = f"is no line of a record: {error!r}"
            raise ConfigError(problem, field=where) from error
    for index, number in enumerate(sorted(sent)):
        yield replace(sent[number], index=index)


def _mooncake(file: TextIO, path: Path) -> Iterator[PlannedRequest]:
    lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
    for index, (number, line) in enumerate(lines):
        where = f"{path}:{number}"
        fields = _json(line, where)
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
    rows = csv.DictReader(file)
    for index, fields in enumerate(rows):
        where = f"{path}:{rows.line_num}"
        yield PlannedRequest(
            index=index,
            num_prompt_tokens=_length(fields, "ContextTokens", where),
            num_output_tokens=_length(fields, "GeneratedTokens", where),
            due_s=_time_of_day(fields, "TIMESTAMP", where),
        )


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}", field=where) from error


def _number(fields: dict[str, Any], name: str, where: str) -> float:
    if name not in fields:
        raise ConfigError("is missing", field=f"{where}: {name}")
    given = fields[name]
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"must be a number, is {given!r:.40}", field=f"{where}: {name}")
    return number


def _length(fields: dict[str, Any], name: str, where: str) -> int:
    """At least 1: traces hold a few requests without output, and no server can send those."""
    number = _number(fields, name, where)
    if not 0 <= number <= _MAX_LENGTH or number != int(number):
        problem = f"must be a whole number from 0 to {_MAX_LENGTH:,}, is {number:g}"
        raise ConfigError(problem, field=f"{where}: {name}")
    return max(1, int(number))


def _time_of_day(fields: dict[str, Any], name: str, where: str) -> float:
    if name not in fields:
        raise ConfigError("is missing", field=f"{where}: {name}")
    try:
        time = datetime.fromisoformat(fields[name])
    except (TypeError, ValueError) as error:
        problem = f"must be a date and time, is {fields[name]!r}"
        raise ConfigError(problem, field=f"{where}: {name}") from error
    # Without a zone it is UTC, not this machine's, whose summer time would move arrivals.
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _hashes(fields: dict[str, Any], where: str) -> tuple[int, ...]:
    hashes = fields.get("hash_ids", [])
    if not isinstance(hashes, list) or not all(type(each) is int for each in hashes):
        raise ConfigError("must be an array of integers", field=f"{where}: hash_ids")
    if wrong := next((each for each in hashes if not 0 <= each < _NUM_HASHES), None):
        problem = f"must be from 0 to 2^64 - 1, one is {wrong}"
        raise ConfigError(problem, field=f"{where}: hash_ids")
    return tuple(hashes)
