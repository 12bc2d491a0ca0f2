import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.examples import Examples, Splits
from flyweight.data.leaks import find_leaks
from flyweight.data.splits import assemble, select_parts, split, with_sizes
from flyweight.errors import InputError
from flyweight.settings import DataSettings


def numbered(rows: int, classes: int = 3) -> Examples:
    return Examples({"x": np.arange(rows, dtype=np.float32)[:, None]}, np.arange(rows) % classes)


def ids(examples: Examples) -> list[int]:
    return examples.inputs["x"].ravel().astype(int).tolist()


sizes = st.integers(2, 200)
fractions = st.floats(0.01, 0.99)


@given(sizes, fractions, st.integers(0, 2**31))
def test_split_keeps_every_row_on_exactly_one_side(rows, fraction, seed):
    drawn = split(numbered(rows), DataSettings(evaluation_fraction=fraction, seed=seed))
    assert sorted(ids(drawn.train) + ids(drawn.evaluation)) == list(range(rows))


@given(sizes, fractions)
def test_split_has_the_asked_size_and_is_never_empty(rows, fraction):
    drawn = split(numbered(rows), DataSettings(evaluation_fraction=fraction))
    assert len(drawn.evaluation) == min(max(round(fraction * rows), 1), rows - 1)


@given(sizes, st.integers(0, 100))
def test_split_is_the_same_for_the_same_seed(rows, seed):
    settings = DataSettings(seed=seed, calibration_size=5)
    first, second = split(numbered(rows), settings), split(numbered(rows), settings)
    for name in ("train", "calibration", "evaluation"):
        assert ids(getattr(first, name)) == ids(getattr(second, name))


def test_split_differs_between_seeds():
    drawn = [ids(split(numbered(100), DataSettings(seed=seed)).evaluation) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


@given(st.lists(st.integers(4, 40), min_size=2, max_size=6), fractions)
def test_split_holds_classes_in_proportion(counts, fraction):
    targets = np.repeat(np.arange(len(counts)), counts)
    examples = Examples({"x": np.arange(len(targets), dtype=np.float32)}, targets)
    held = split(examples, DataSettings(evaluation_fraction=fraction)).evaluation.targets
    for index, count in enumerate(counts):
        share = count / len(targets)
        bound = ((1 - share) + share * (len(counts) - 1)) / 2
        assert abs((held == index).sum() - len(held) * share) <= bound + 1e-9


@given(st.lists(st.integers(0, 12), min_size=2, max_size=120).filter(lambda v: len(set(v)) > 1), fractions)
def test_equal_rows_are_never_on_both_sides(values, fraction):
    examples = Examples({"x": np.array(values, np.float32)}, np.arange(len(values)) % 2)
    drawn = split(examples, DataSettings(evaluation_fraction=fraction))
    assert not find_leaks(drawn)
    assert len(drawn.train) + len(drawn.evaluation) == len(values)
    assert min(len(drawn.train), len(drawn.evaluation)) > 0


@given(sizes, st.integers(1, 300))
def test_calibration_is_drawn_from_train(rows, size):
    drawn = split(numbered(rows), DataSettings(calibration_size=size))
    assert set(ids(drawn.calibration)) <= set(ids(drawn.train))
    assert len(drawn.calibration) == min(size, len(drawn.train))


@pytest.mark.parametrize("rows", [[], [1.0], [2.0, 2.0, 2.0]])
def test_data_that_cannot_be_split_say_so(rows):
    with pytest.raises(InputError, match="a split needs two different ones"):
        split(Examples({"x": np.array(rows)}), DataSettings())


def test_sizes_are_limited_and_sampled_by_class():
    data = Splits(numbered(90), numbered(90), numbered(90))
    limited = with_sizes(data, DataSettings(calibration_size=9, evaluation_size=30))
    assert (len(limited.train), len(limited.calibration), len(limited.evaluation)) == (90, 9, 30)
    assert np.bincount(limited.evaluation.targets).tolist() == [10, 10, 10]
    assert ids(limited.evaluation) == sorted(ids(limited.evaluation))


def test_given_parts_are_kept():
    splits = assemble({"train": numbered(10), "evaluation": numbered(4)}, DataSettings(calibration_size=3))
    assert ids(splits.train) == list(range(10))
    assert ids(splits.evaluation) == list(range(4))
    assert set(ids(splits.calibration)) <= set(range(10))


def test_given_calibration_data_are_used():
    parts = {"train": numbered(10), "calibration": numbered(3), "evaluation": numbered(4)}
    assert ids(assemble(parts, DataSettings()).calibration) == [0, 1, 2]


def test_a_single_part_is_split():
    splits = assemble({"evaluation": numbered(20)}, DataSettings())
    assert (len(splits.train), len(splits.evaluation)) == (15, 5)


def test_test_data_come_before_validation_data():
    assert select_parts({"val": 1, "Test": 2, "training": 3}) == {"train": 3, "evaluation": 2}


def test_unsplit_data_are_evaluated_whole_on_request():
    only = numbered(10)
    splits = assemble({"train": only}, DataSettings(), whole=True)
    assert splits.evaluation is only
    assert splits.train is only
