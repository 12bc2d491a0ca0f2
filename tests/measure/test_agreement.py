"""Whether two forms of a model compute the same."""

from __future__ import annotations

import math

import pytest
import torch

from flyweight.measure.agreement import relative_error

ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ((ONES,), (ONES,), 0.0),
        ((ONES,), (ONES * 1.5,), 0.5),
        ((ONES, ONES), (ONES * 1.5, ONES * 3), 2.0),
        ((ONES * 0,), (ONES * 0,), 0.0),
        ((ONES * 0,), (ONES,), math.inf),
        ((ONES,), (ONES, ONES), math.inf),
        ((ONES,), (ONES[:1],), math.inf),
        ((ONES / 0,), (ONES / 0,), 0.0),
        ((ONES / 0,), (ONES / 0 * -1,), math.inf),
        ((ONES * math.nan,), (ONES * math.nan,), 0.0),
        ((ONES,), (ONES * math.nan,), math.inf),
        ((torch.tensor([3, 4]),), (torch.tensor([3, 9]),), 1.0),
    ],
)
def test_relative_error_is_that_of_the_worst_output(expected, found, error):
    assert relative_error(expected, found) == pytest.approx(error)
