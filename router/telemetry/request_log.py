"""The requests in flight and the last that ended, for operators. Bounded; nothing depends on it.

Of one that ended only its account is kept: neither prompt nor output, which may be megabytes each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from baton.errors import BatonError
from router.request_life import RequestAccount, RequestLife


class RequestLog:
    """`watchers` are told of every request once it has ended."""

    def __init__(self, num_kept: int, watchers: Sequence[Callable[[RequestLife], None]]) -> None:
        self._watchers = watchers
        self._running: dict[int, RequestLife] = {}
        self._ended: deque[RequestAccount] = deque(maxlen=num_kept)
        self._num_prompt_tokens = 0  # of all that have ended
        self._num_output_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @contextmanager
    def recording(self, life: RequestLife) -> Iterator[None]:
        self._running[id(life)] = life
        state = ""
        try:
            yield
        except BatonError as error:
            state = error.code
            raise
        finally:
            state = state or _outcome(life)
            life.state = state
            del self._running[id(life)]
            self._ended.append(account := life.account())
            self._num_prompt_tokens += account.usage.num_prompt_tokens
            self._num_output_tokens += account.usage.num_output_tokens
            for watcher in self._watchers:
                watcher(life)

    def num_tokens(self) -> tuple[int, int]:
        """Of all requests there were and are: in their prompts, and produced so far."""
        running = [life.usage() for life in self._running.values()]
        return (
            self._num_prompt_tokens + sum(usage.num_prompt_tokens for usage in running),
            self._num_output_tokens + sum(usage.num_output_tokens for usage in running),
        )

    def newest(self, limit: int) -> list[RequestAccount]:
        """Those in flight, then those that ended; newest first."""
        running = [life.account() for life in islice(reversed(self._running.values()), limit)]
        return [*running, *islice(reversed(self._ended), limit - len(running))]


def _outcome(life: RequestLife) -> str:
    """Of one that ended without an error. A client that hangs up once it has everything cancels nothing."""
    if not life.done:
        return "cancelled"
    reasons = {s.finish_reason.name.lower() for s in life.samples if s.finish_reason}
    return "+".join(sorted(reasons))
