import numpy as np
import pytest

from flyweight.data.columns import choose_roles
from flyweight.data.tables import Table, has_header, numbers, read_table
from flyweight.errors import InputError
from flyweight.settings import DataSettings


@pytest.mark.parametrize(
    ("rows", "requested", "expected"),
    [
        ([["a", "b"], ["1", "x"]], (), True),  # a column of numbers below a word
        ([["1", "b"], ["1", "x"]], (), False),  # a number in the first row
        ([["text", "category"], ["hi", "x"]], (), True),  # usual names
        ([["text", "x"], ["text", "y"]], ("0",), False),  # "text" is a value here
        ([["hi", "x"], ["ho", "y"]], ("0", "1"), False),  # asked for by position
        ([["hi", "x"], ["ho", "y"]], ("x",), True),  # asked for by name
        ([["nan", "b"], ["1", "x"]], (), False),
        ([["", "label"], ["0", "x"]], (), True),  # row numbers written by pandas
    ],
)
def test_a_header_is_told_by_the_rule(rows, requested, expected):
    assert has_header(rows, requested, "d.csv") is expected


@pytest.mark.parametrize("rows", [[["hi", "x"], ["ho", "y"]], [["hi", "x"]], [["one line of text"]]])
def test_a_doubtful_header_is_asked_for(rows):
    with pytest.raises(
        InputError, match=r"--input-column: by name if it is, by position \(0, 1, \.\.\.\) if not"
    ):
        has_header(rows, (), "d.csv")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", " 2", "-3"], np.int64),
        (["1", "2.5"], np.float32),
        (["1", "", "NA"], np.float32),
        ([1, 2.5, None], np.float32),
        ([True, False], np.int64),
        (["1_0", "2"], None),
        (["", "na"], None),
        (["1", "x"], None),
        (["9" * 5000, "1"], np.float32),
        ([[1], [2]], None),
        ([], None),
    ],
)
def test_numbers_are_told_from_texts(values, expected):
    parsed = numbers(values)
    assert (parsed is None) if expected is None else (parsed.dtype == expected)


def test_large_ids_stay_exact():
    assert numbers(["16777217", "9007199254740993"]).tolist() == [16777217, 9007199254740993]


def test_a_byte_order_mark_and_blank_lines_are_skipped(tmp_path):
    (tmp_path / "d.tsv").write_bytes(b"\xef\xbb\xbfa\tlabel\n\n1\t0\n\n")
    assert dict(read_table(tmp_path / "d.tsv").columns) == {"a": ("1",), "label": ("0",)}


TABLE = Table("d.csv", {"": ["0"], "sentence": ["a"], "Label": ["b"], "age": ["1"]})


def test_usual_names_choose_text_and_target():
    roles = choose_roles(TABLE, DataSettings())
    assert (roles.inputs, roles.target) == (("sentence",), "Label")


def test_settings_choose_by_name_and_position():
    roles = choose_roles(TABLE, DataSettings(inputs=("3",), target="sentence", slices=("Label",)))
    assert (roles.inputs, roles.target, roles.slices) == (("age",), "sentence", ("Label",))


def test_the_last_column_is_the_target_if_none_has_a_usual_name():
    table = Table("d.csv", {"0": ["1"], "1": ["2"], "2": ["3"]}, headed=False)
    assert choose_roles(table, DataSettings()).target == "2"
    assert choose_roles(table, DataSettings(), labelled=False).inputs == ("0", "1", "2")


def test_an_input_cannot_be_the_target():
    with pytest.raises(InputError, match="both an input and the target"):
        choose_roles(TABLE, DataSettings(inputs=("age",), target="age"))
