"""Stop strings are found wherever text is cut, and never shown in part."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.text.stop_strings import StopMatcher

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)
PIECES = st.lists(st.text("abc", max_size=5), max_size=8)


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The stop string that is complete first; of those complete at one place the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end - len(stop)], stop


@settings(deadline=None, derandomize=True, max_examples=1000)
@given(PIECES, STOPS)
def test_any_cut_finds_what_find_finds_on_the_whole(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    emitted, matched = "", None
    for piece in pieces:
        emit, matched = matcher.push(piece)
        emitted += emit
    if matched is None:
        emitted += matcher.flush()
    assert (emitted, matched) == expected("".join(pieces), stops)


@settings(deadline=None, derandomize=True, max_examples=1000)
@given(PIECES, STOPS)
def test_only_what_may_become_a_match_is_held_back(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    matcher = StopMatcher(stops)
    emitted = text = ""
    for piece in pieces:
        emit, matched = matcher.push(piece)
        if matched is not None:
            return
        emitted, text = emitted + emit, text + piece
        held = text[len(emitted) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_match_across_pushes_is_not_shown() -> None:
    matcher = StopMatcher(("</end>",))
    assert matcher.push("answer </e") == ("answer ", None)
    assert matcher.push("n") == ("", None)
    assert matcher.push("d> more") == ("", "</end>")
    assert matcher.push("even more") == ("", "</end>")
    assert matcher.flush() == ""


def test_what_does_not_match_after_all_is_shown_whole() -> None:
    matcher = StopMatcher(("</end>",))
    assert matcher.push("</e") == ("", None)
    assert matcher.push("m>") == ("</em>", None)


def test_a_stop_string_where_nothing_may_stop_is_text() -> None:
    matcher = StopMatcher(("ab", "bcd"))
    emitted, matched = matcher.push("xab", may_stop=False)
    assert matched is None
    rest, matched = matcher.push("cd")
    assert (emitted + rest, matched) == ("xa", "bcd")


def test_what_is_held_at_the_end_is_flushed() -> None:
    matcher = StopMatcher(("\n\n",))
    assert matcher.push("text\n") == ("text", None)
    assert matcher.flush() == "\n"


def test_without_stop_strings_all_text_passes() -> None:
    assert StopMatcher(()).push("any\n\n") == ("any\n\n", None)
