import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.examples import Examples, Splits
from flyweight.data.leaks import Leak, find_leaks, row_digests
from flyweight.errors import InputError


def splits_of(first, second) -> Splits:
    train, evaluation = Examples({"x": first}), Examples({"x": second})
    return Splits(train, train, evaluation)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=50),
    st.lists(st.integers(0, 30), min_size=1, max_size=50),
)
def test_leaks_are_the_shared_rows(first, second):
    expected = sum(value in first for value in second)
    leaks = find_leaks(splits_of(np.array(first), np.array(second)))
    assert [leak.rows for leak in leaks] == ([expected, expected] if expected else [])
    for leak in leaks:
        assert all(first[a] == second[b] for a, b in leak.examples)
        assert len(leak.examples) == min(expected, 5)


@given(st.lists(st.text(max_size=4), min_size=1, max_size=20, unique_by=lambda t: " ".join(t.split())))
def test_digests_of_different_texts_differ(texts):
    import unicodedata

    different = {" ".join(unicodedata.normalize("NFC", text).split()) for text in texts}
    assert len(np.unique(row_digests(Examples({"text": texts})))) == len(different)


def test_texts_are_equal_up_to_white_space_and_composition():
    (leak, _) = find_leaks(splits_of(["caf\u00e9  au\tlait "], ["cafe\u0301 au lait"]))
    assert leak.examples == ((0, 0),)


def test_numbers_are_equal_across_types():
    assert find_leaks(splits_of(np.array([1, 2]), np.array([2.0], np.float32)))[0].examples == ((1, 0),)
    assert find_leaks(splits_of(np.array([-0.0]), np.array([0.0])))


def test_rows_are_equal_only_in_all_inputs():
    digests = row_digests(Examples({"a": np.array([1, 1, 1]), "b": ["x", "y", "x"]}))
    assert digests[0] == digests[2] != digests[1]


def test_the_order_of_columns_does_not_matter():
    a, b = np.array([1, 2]), np.array([3, 4])
    np.testing.assert_array_equal(
        row_digests(Examples({"a": a, "b": b})), row_digests(Examples({"b": b, "a": a}))
    )


def test_images_are_equal_if_their_bytes_are(tmp_path):
    for name, content in (("a.png", b"1"), ("b.png", b"2"), ("copy.png", b"2")):
        (tmp_path / name).write_bytes(content)
    leaks = find_leaks(splits_of([tmp_path / "a.png", tmp_path / "b.png"], [tmp_path / "copy.png"]))
    assert leaks[0].examples == ((1, 0),)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.png"):
        row_digests(Examples({"image": [tmp_path / "gone.png"]}))


def test_arrays_of_unequal_sizes_are_compared_with_their_shapes():
    flat, tall = np.zeros((1, 4), np.uint8), np.zeros((4, 1), np.uint8)
    digests = row_digests(Examples({"x": [flat, tall, flat]}))
    assert digests[0] == digests[2] != digests[1]


def test_the_sentence_counts_and_points():
    leak = Leak("calibration", "evaluation", 7, 100, ((3, 17), (4, 18)))
    assert leak.sentence == (
        "7 of 100 evaluation examples are in the calibration data too, so quality measured on them flatters: "
        "evaluation 17 (= calibration 3), 18 (= calibration 4), ..."
    )


def test_no_rows_give_no_digests():
    assert row_digests(Examples({"x": np.zeros((0, 3))})).shape == (0,)
