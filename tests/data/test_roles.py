import numpy as np
import pytest

from flyweight.data.load import open_data, open_inputs
from flyweight.data.roles import NOTHING, Expected, Roles, with_roles
from flyweight.errors import InputError
from flyweight.settings import DataSettings, Settings
from flyweight.tasks.checks import labels
from flyweight.tasks.checks import numbers as number_targets

GUESS = DataSettings()
PAIRS = Expected(kind="texts", inputs=("0", "1"), target="2")
TEXT = Expected(kind="texts", inputs=("text",), target="label")
NUMBERS = Expected(kind="numbers", inputs=("age", "rooms"), target="price")


BOTH = {"text": ["A man.", "B"], "text_b": ["A guy.", "C"]}


def written(tmp_path, content, name="new.csv"):
    (tmp_path / name).write_text(content)
    return tmp_path / name


def told(tmp_path, content, expected, name="new.csv", settings=GUESS):
    with pytest.raises(InputError) as raised:
        open_inputs(written(tmp_path, content, name), settings, expected=expected)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def inputs(tmp_path, content, expected, name="new.csv", settings=GUESS):
    read = open_inputs(written(tmp_path, content, name), settings, expected=expected).inputs
    return {column: list(values) for column, values in read.items()}


def test_data_know_which_columns_they_were_read_from(tmp_path):
    path = written(tmp_path, "".join(f"one {i},two {i},{i}.5\n" for i in range(8)))
    roles = open_data(path, GUESS, class_targets=None).evaluation.roles
    assert roles == Roles(("0", "1"), "2", guessed="as the last")


def test_settings_take_the_columns_that_were_read():
    settings = Settings(model="m", data="d", out="o")
    data = with_roles(settings, Roles(("a", "b"), "c", guessed="for its name")).data_settings
    assert (data.inputs, data.target) == (("a", "b"), "c")
    assert with_roles(settings, None) == settings


def test_the_columns_of_training_are_read_again(tmp_path):
    assert inputs(tmp_path, "A man.,A guy.,4.5\nB,C,1.0\n", PAIRS) == {
        "text": ["A man.", "B"],
        "text_b": ["A guy.", "C"],
    }
    assert inputs(tmp_path, "A man.,A guy.\nB,C\n", PAIRS) == {
        "text": ["A man.", "B"],
        "text_b": ["A guy.", "C"],
    }
    assert inputs(tmp_path, "id,text,note\n1,hi,x\n", TEXT) == {"text": ["hi"]}
    assert inputs(tmp_path, "rooms,extra,age\n1,x,2\n", NUMBERS) == {"age": [2], "rooms": [1]}


def test_columns_that_are_asked_for_come_first(tmp_path):
    settings = DataSettings(inputs=("note",))
    assert inputs(tmp_path, "id,text,note\n1,hi,x\n", TEXT, settings=settings) == {"note": ["x"]}


def test_a_model_of_texts_leaves_numbers_out_unless_texts_are_numbers(tmp_path):
    unknown = Expected(kind="texts")
    assert inputs(tmp_path, "A man.,A guy.,4.5\nB,C,1.0\n", unknown) == {
        "text": ["A man.", "B"],
        "text_b": ["A guy.", "C"],
    }
    assert inputs(tmp_path, "text\n42\n7\n", TEXT) == {"text": ["42", "7"]}


def test_texts_under_another_name_are_read(tmp_path):
    assert inputs(tmp_path, "sentence\nhi\n", TEXT) == {"sentence": ["hi"]}


def test_a_table_without_the_known_header_is_told(tmp_path):
    message = told(tmp_path, "good morning\nbye\n", TEXT)
    assert "'good morning'" in message
    assert "column 'text'" in message
    assert "--input-column 0" in message


def test_numbers_without_the_known_header_are_told(tmp_path):
    assert "new.csv has no header; put the line age,rooms first" in told(tmp_path, "1,2\n", NUMBERS)


def test_a_header_alone_has_no_rows(tmp_path):
    assert "holds a header and no rows" in told(tmp_path, "text\n", TEXT)
    assert "holds a header and no rows" in told(tmp_path, "age,rooms\n", NUMBERS)
    assert "holds a header and no rows" in told(tmp_path, "text,label\n", NOTHING)


@pytest.mark.parametrize("content", ["age;rooms\n1;2\n3;4\n", "age;rooms\n1,5;2\n3,5;4\n"])
def test_another_separator_is_told(tmp_path, content):
    assert "separator" in told(tmp_path, content, NUMBERS)
    assert "separator" in told(tmp_path, content, NOTHING)


def test_semicolons_inside_texts_are_no_separator(tmp_path):
    assert inputs(tmp_path, "text\nhi; you\nbye; all\n", TEXT) == {"text": ["hi; you", "bye; all"]}


def test_text_among_numbers_is_told_with_row_and_column(tmp_path):
    message = told(tmp_path, "age,rooms\n1,2\nold,3\n", NUMBERS)
    assert "column 'age' holds 'old' in row 2" in message
    with pytest.raises(InputError, match="column 'age' holds 'old' in row 2"):
        open_data(written(tmp_path, "age,rooms,label\n1,2,0\nold,3,1\n5,3,1\n"), GUESS)


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("new.txt", "hello\n", "images", "new.txt holds texts, and the model takes images"),
        ("new.txt", "hello\n", "numbers", "new.txt holds texts, and the model takes numbers"),
        ("new.csv", "a,b\n1,2\n", "images", "new.csv holds a table, and the model takes images"),
        ("new.png", "", "texts", "new.png holds images, and the model takes texts"),
        ("new.png", "", "numbers", "new.png holds images, and the model takes numbers"),
    ],
)
def test_data_of_another_kind_are_told(tmp_path, name, content, kind, message):
    assert message in told(tmp_path, content, Expected(kind=kind), name)


@pytest.mark.parametrize(
    ("content", "target", "why"),
    [("age,price\n1,0.5\n2,1.5\n", "price", "as the last"), ("y,price\n0.5,1\n1.5,2\n", "y", "for its name")],
)
def test_a_guessed_target_that_is_no_class_is_named(tmp_path, content, target, why):
    with pytest.raises(InputError, match=rf"column '{target}' was taken .*, {why}.*--target-column"):
        open_data(written(tmp_path, content), GUESS)


def test_a_guessed_target_that_does_not_fit_the_task_is_named(tmp_path):
    path = written(tmp_path, "".join(f"{i},{i}.5,{'ab'[i % 2]}\n" for i in range(8)))
    examples = open_data(path, GUESS, class_targets=False).evaluation
    with pytest.raises(InputError, match=r"column '2' was taken as the target.*--target-column"):
        number_targets(examples, "regression")
    reals = open_data(
        written(tmp_path, "a,b\n1,.5\n2,.5\n3,.2\n4,.1\n"), GUESS, class_targets=False
    ).evaluation
    with pytest.raises(InputError, match=r"column 'b' was taken as the target.*--target-column"):
        labels(reals, "similarity")


def test_a_target_that_was_asked_for_is_no_guess(tmp_path):
    with pytest.raises(InputError) as raised:
        open_data(written(tmp_path, "age,price\n1,0.5\n2,1.5\n"), DataSettings(target="price"))
    assert "--target-column" not in str(raised.value)


def test_roles_are_kept_by_a_part_of_the_examples(tmp_path):
    examples = open_data(written(tmp_path, "age,label\n1,0\n2,1\n"), GUESS).train
    assert examples.take(np.array([0])).roles == Roles(("age",), "label", guessed="for its name")
