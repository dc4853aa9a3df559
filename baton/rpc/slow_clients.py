"""Gives up calls whose client reads nothing. One timer for all of them, since writes are the hot path: a
timer for each would cost a twentieth of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from baton.errors import Cancelled


class SlowClients:
    """`limit_s`: how long a response may stay unread; None for no limit. It is looked at often enough to
    be noticed a quarter late at most."""

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._writing: dict[asyncio.Task[object], float] = {}  # since when
        self._given_up: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around one write of the current task. Raises Cancelled when it took too long."""
        if self._limit_s is None:
            yield
            return
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._writing[task] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._limit_s / 4, self._look)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._given_up or task.uncancel():
                raise
            raise Cancelled(f"nothing was read for {self._limit_s:g} s") from None
        finally:
            del self._writing[task]
            self._given_up.discard(task)

    def _look(self) -> None:
        self._timer = None
        if not self._writing or self._limit_s is None:
            return
        loop = asyncio.get_running_loop()
        latest_s = loop.time() - self._limit_s
        for task, since_s in self._writing.items():
            if since_s <= latest_s and task not in self._given_up:
                self._given_up.add(task)
                task.cancel()
        self._timer = loop.call_later(self._limit_s / 4, self._look)
