"""Keys as they are pressed, for what fills the screen until somebody has seen enough."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_QUITS = b"qQ"

# Waits for so many seconds; whether somebody pressed q meanwhile.
Wait = Callable[[float], bool]


@contextmanager
def quit_key() -> Iterator[Wait]:
    """Where standard input is no terminal, nobody can press anything."""
    if not sys.stdin.isatty():
        yield sleep
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield lambda seconds: _wait(terminal, seconds)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def sleep(seconds: float) -> bool:
    """The `Wait` of whoever can press nothing."""
    time.sleep(seconds)
    return False


def _wait(terminal: int, seconds: float) -> bool:
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left_s)[0]:
            return False
        keys = os.read(terminal, 1024)
        if not keys:  # it was hung up
            return True
        if any(key in _QUITS for key in keys):
            return True
    return False
