"""Answers are written as `json.dumps` writes them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http.json_answer import write

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(values)
def test_it_is_what_json_dumps_gives(value: Any) -> None:
    assert write(value) == json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def test_nesting_may_be_deeper_than_it_walks() -> None:
    value: Any = 1
    for _ in range(50):
        value = {"a": [value, "b"]}
    assert json.loads(write(value)) == value


def test_what_json_cannot_say_is_not_said() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write({"logprob": float("-inf")})
