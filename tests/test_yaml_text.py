"""YAML as people write it: what words mean, where keys stand, and that what is written is read again, here and elsewhere."""

import math

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from nas.documents import yaml_text
from nas.documents.quantities import number

WORDS = {  # as they stand in a file, without quotes
    "yes": "yes", "No": "No", "on": "on", "off": "off", "true": True, "FALSE": False, "~": None, "null": None,
    "010": "010", "0": 0, "-0": 0, "+7": 7, "1:30": "1:30", "0x1F": "0x1F", "0o17": "0o17", "1_0": 10, "40_000": 40_000,
    "1__0": "1__0", "_1": "_1", "4e3": 4000, "4E+3": 4000, "3e-4": 3e-4, "1.0": 1.0, ".5": 0.5, "5.": 5.0, "4K": 4000, "4k": 4000,
    "1.5T": 1_500_000_000_000, "400 M": 400_000_000, "0.3K": 300, "4.35K": 4350, "4KB": "4KB", "400m": "400m", "K": "K",
    "1e400": "1e400", ".inf": ".inf", "-.inf": "-.inf", ".nan": ".nan", "inf": "inf", "2025-01-01": "2025-01-01",
    "2025-13-45": "2025-13-45",
    "9223372036854775807": 2**63 - 1, "9223372036854775808": 2.0**63, "12e45678901": "12e45678901", "None": "None",
    "4.530384253034319e+16": 4.530384253034319e16,
}  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_word_without_quotes(word):
    value = yaml_text.read(f"a: {word}").value["a"]
    assert value == WORDS[word] and type(value) is type(WORDS[word])
    assert yaml_text.read(f"a: '{word}'").value["a"] == word


def test_a_number_of_many_digits_is_no_whole_one():
    assert number("9" * 5_000) is None and number("1" + "0" * 300) == 1e300
    assert number("0." + "3" * 5_000) == pytest.approx(1 / 3)


def test_keys_are_text_and_know_their_lines():
    text = "# words\na: 1\n3: {true: x, y: [4,\n  5]}\nnull:\n- b: 6\n"
    read = yaml_text.read(text)
    assert read.value == {"a": 1, "3": {"true": "x", "y": [4, 5]}, "null": [{"b": 6}]}
    assert read.lines == {
        "": 2, "a": 2, "3": 3, "3.true": 3, "3.y": 3, "3.y.0": 3, "3.y.1": 4, "null": 5, "null.0": 6, "null.0.b": 6
    }  # fmt: skip


def test_aliases_are_copies_and_merged_keys_give_way():
    text = "a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}\nd:\n  z: 4\n  <<: [{z: 5, w: 6}, *a]\n"
    read = yaml_text.read(text)
    assert read.value == yaml.safe_load(text)
    assert read.value["b"]["y"] is not read.value["a"]["y"]
    assert read.lines["c.x"] == 3 and read.lines["d.w"] == 6 and read.lines["d.z"] == 5


def test_ten_thousand_values_are_read_and_one_more_is_not():
    assert len(yaml_text.read(f"[{', '.join(['1'] * 9_999)}]").value) == 9_999
    with pytest.raises(yaml_text.NotRead, match="more than 10,000 values"):
        yaml_text.read(f"[{', '.join(['1'] * 10_000)}]")


WRITTEN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x7f\x85\ufeff", exclude_categories=("Cc", "Cs")))
    | st.from_regex(r"[-+]?[0-9]{1,4}[.:_eE]?[-+]?[0-9]{0,4} ?[kKMGT]?", fullmatch=True)
    | st.sampled_from(list(WORDS)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1.:", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(WRITTEN)
@example({"key": "123456e78901", "size": "4K", "when": "010", "at": "1:30", "say": "yes"})
@example(1e22)
@effort(max_examples=60, deadline=None)
def test_what_is_written_is_read_again_here_and_elsewhere(value):
    text = yaml_text.written({"a": value})
    assert yaml.safe_load(text) == {"a": value}
    again = yaml_text.read(text).value["a"]
    assert again == value and (not isinstance(value, str) or isinstance(again, str))
    assert not isinstance(again, float) or math.isfinite(again)
