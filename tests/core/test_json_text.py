from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.core.json_text import parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_can_hold_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value), "it", max_bytes=1_000_000) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan is not JSON: Expecting value"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": {"b": 1, "b": 1}}', "plan: the key 'b' is given twice in one object"),
        ('{"a": [{"b": NaN}]}', r"plan: a\[0\]\.b must be finite, got nan"),
        ('{"a": -Infinity}', "plan: a must be finite, got -inf"),
        ('{"a": 1e999}', "plan: a must be finite, got inf"),
        ("Infinity", "plan: the number must be finite"),
        ("9" * 5000, "plan: Exceeds the limit"),
        ('"' + "a" * 20_000 + '"', "plan is larger than 10000 bytes"),
    ],
    ids=range(9),
)
def test_anything_else_is_refused_in_one_sentence_that_says_where(text: str, message: str) -> None:
    limit = 10_000 if "aa" in text else 1_000_000
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "plan", max_bytes=limit)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
