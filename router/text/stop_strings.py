"""Finds stop strings in text that comes in pieces (Aho and Corasick, 1975).

The automaton's state is the longest end of the text that begins a stop string, so its depth says
exactly how much must be held back. The match is the one that is complete first, and of those the
longest: a choice that does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache


class _Automaton:
    """State 0 is the root. `matches[state]`: the longest stop string that ends there."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.fallback = [0]
        self.matches: list[str | None] = [None]
        for stop in stops:
            self._add(stop)
        self._link()

    def _add(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self.next[state]:
                self.next[state][char] = len(self.next)
                self.next.append({})
                self.depth.append(self.depth[state] + 1)
                self.fallback.append(0)
                self.matches.append(None)
            state = self.next[state][char]
        self.matches[state] = stop

    def _link(self) -> None:
        """Breadth first, so that every fallback is complete before it is needed."""
        queue = deque(self.next[0].values())
        while queue:
            state = queue.popleft()
            if self.matches[state] is None:
                self.matches[state] = self.matches[self.fallback[state]]
            for char, child in self.next[state].items():
                queue.append(child)
                self.fallback[child] = self.step(self.fallback[state], char)

    def step(self, state: int, char: str) -> int:
        while (found := self.next[state].get(char)) is None:
            if state == 0:
                return 0
            state = self.fallback[state]
        return found


# Samples of one request share it, and so do requests, which mostly stop at the same strings.
_automaton = lru_cache(maxsize=256)(_Automaton)


class StopMatcher:
    """Passes text on, up to the first stop string.

    Never emits a part of the matched stop string; holds back only what may still become one.
    """

    __slots__ = ("_automaton", "_held", "_state", "matched")

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._automaton = _automaton(stops) if stops else None
        self._state = 0
        self._held = ""
        self.matched: str | None = None

    @property
    def is_armed(self) -> bool:
        """Whether there is anything to stop at."""
        return self._automaton is not None

    def push(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """The text that is certain now, and the stop string where one matched. After a match all
        further text is dropped. A stop string that is complete where it may not stop is text like any."""
        automaton = self._automaton
        if automaton is None:
            return text, None
        if self.matched is not None:
            return "", self.matched
        state, step, matches = self._state, automaton.step, automaton.matches
        for index, char in enumerate(text):
            state = step(state, char)
            if may_stop and (matched := matches[state]) is not None:
                self.matched = matched
                emit = (self._held + text[: index + 1])[: -len(matched)]
                self._held = ""
                return emit, matched
        self._state = state
        seen = self._held + text
        num_certain = len(seen) - automaton.depth[state]
        self._held = seen[num_certain:]
        return seen[:num_certain], None

    def flush(self) -> str:
        """What was held back, once the text has ended without a match."""
        held, self._held, self._state = self._held, "", 0
        return held
