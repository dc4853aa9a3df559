"""What Baton's processes log: a line per event, whatever names it holds."""

from __future__ import annotations

import logging
import sys

from baton.logs import OneLine


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("router", logging.INFO, __file__, 1, message, args, None)


def test_a_name_cannot_forge_a_line() -> None:
    shown = OneLine("%(message)s").format(record("request %s", "a\r\nERROR b\x1b[2K\u2028c é"))
    assert shown == r"request a\r\nERROR b\x1b[2K\u2028c é"


def test_a_traceback_keeps_its_lines() -> None:
    failed = record("request %s failed", "a")
    try:
        raise ValueError("no")
    except ValueError:
        failed.exc_info = sys.exc_info()
    first, *rest = OneLine("%(message)s").format(failed).splitlines()
    assert first == "request a failed"
    assert rest[-1] == "ValueError: no"
