"""Long JSON is read as short JSON is."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import InvalidArgument
from router.http import json_body
from router.http.json_body import read

PIECE = 100_000  # of a string that is read in pieces, each at most so long

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def read_all(text: str) -> Any:
    """However long it is, it is read as if it were longer."""
    with mock.patch.object(json_body, "_SHORT_CHARS", 0):
        whole = read(text, dict, 10**9)
        with mock.patch.object(json_body, "_LONG_CHARS", 0):
            assert read(text, dict, 10**9) == whole
    return whole


@settings(max_examples=50)
@given(values, st.sampled_from([None, 1]), st.booleans())
def test_what_was_written_is_read(value: Any, indent: int | None, ascii_only: bool) -> None:
    assert read_all(json.dumps(value, indent=indent, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize("unit", ["a", "ж", "😀", "\n", '"', "\\", "a😀\u0001"])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("num_units", [PIECE - 1, PIECE, 4 * PIECE + 1])
def test_a_long_string_is_read_whole(unit: str, ascii_only: bool, num_units: int) -> None:
    value = {"k": [unit * num_units, "x" + unit * num_units]}
    assert read_all(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize("num_integers", [999, 1_000, 1_001, 2_000, 2_500])
@pytest.mark.parametrize("odd", [7, -7, 10**20, 0.5, "a", None, [1]])
def test_a_long_array_of_integers_is_read_whole(num_integers: int, odd: Any) -> None:
    value = [*range(num_integers)]
    for each in (value, [*value, odd], [odd, *value], [*value[:5], odd, *value]):
        assert read_all(json.dumps(each)) == each


@pytest.mark.parametrize(
    "text",
    [
        "[1,]",
        "[1 2]",
        "[01]",
        "[,1]",
        "[1",
        "[",
        "[1,2",
        "[\u00a01]",
        '["a',
        '"' + "a" * 4 * PIECE,
        '"' + "a" * 4 * PIECE + "\n" + '"',
        '"' + "a" * 4 * PIECE + '\\x"',
        '"' + "a" * 4 * PIECE + '\\u12"',
        '{"a": 1,}',
        '{"a"}',
        "1 1",
        "",
    ],
)
def test_what_is_no_json_is_told_as_it_always_is(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError) as found:
        read_all(text)
    assert (found.value.msg, found.value.pos) == (expected.value.msg, expected.value.pos)


@pytest.mark.parametrize("entry", ["1", "{}", '"a"', "[]"])
def test_an_array_of_too_many_is_refused_before_it_is_read_to_its_end(entry: str) -> None:
    array = f"[{','.join([entry] * 20_000)}]"
    assert len(read(array, dict, 20_000)) == 20_000
    with pytest.raises(InvalidArgument, match="more than 19999 entries"):
        read(array, dict, 19_999)
    with pytest.raises(InvalidArgument, match="more than 4000 entries"):
        read("[" + f"{entry}," * 20_000 + "and this is no JSON", dict, 4_000)


def test_one_lone_surrogate_is_read_as_it_always_is() -> None:
    text = '"' + "\\ud83d" * 4 * PIECE + '\\ude00"'
    assert read_all(text) == json.loads(text)
