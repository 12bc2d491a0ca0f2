from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from sample_report import sample

from flyweight.core.analysis import Analysis, Fit
from flyweight.report import loss_plots


def _analysis(layers: int = 20) -> Analysis:
    found = sample(layers).analysis
    assert found is not None
    return found


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_the_ranking_shows_the_worst_layers_with_what_they_would_gain() -> None:
    analysis = _analysis(40)
    layers = loss_plots.ranked(analysis)
    assert len(layers) == loss_plots.MAX_RANKED
    assert list(layers) == sorted(layers, key=lambda layer: -(layer.damage or 0.0))
    texts = _texts(loss_plots.ranking(analysis))
    assert sum(" → " in text and " (+" in text for text in texts) == len(layers)
    assert "weights in 8 bits" in texts


def test_widths_that_differ_are_not_named_as_one() -> None:
    first, *rest = _analysis(4).layers
    assert first.wider is not None
    other = replace(first, wider=replace(first.wider, bits=4))
    analysis = replace(_analysis(4), layers=(other, *rest))
    assert "weights one width higher" in _texts(loss_plots.ranking(analysis))


def test_an_analysis_without_trials_has_no_ranking() -> None:
    layers = tuple(replace(layer, damage=None) for layer in _analysis(4).layers)
    with pytest.raises(ValueError, match="no layer that was tried"):
        loss_plots.ranking(replace(_analysis(4), layers=layers))


def test_layers_without_errors_have_no_histogram() -> None:
    layers = tuple(replace(layer, histogram=None) for layer in _analysis(4).layers)
    with pytest.raises(ValueError, match="no rounding errors"):
        loss_plots.error_histograms(replace(_analysis(4), layers=layers))


@pytest.mark.parametrize("layers", [4, 20, 62])
def test_the_axis_of_layers_has_room_for_the_names_on_it(layers: int) -> None:
    names = [text for text in _texts(loss_plots.propagation(_analysis(layers))) if "conv" in text]
    assert min(layers - 2, 10) <= len(names) <= 18


def test_errors_of_nothing_are_drawn_without_a_warning() -> None:
    analysis = _analysis(4)
    layers = tuple(
        replace(layer, errors=replace(layer.errors, output=None, output_alone=None))
        for layer in analysis.layers
    )
    assert "<svg" in loss_plots.propagation(replace(analysis, layers=layers, output=None))


@pytest.mark.parametrize("shape", ["uniform", "triangular", "gaussian"])
def test_a_density_integrates_to_one_around_its_centre(shape: str) -> None:
    fit = Fit(shape=shape, centre=0.3, spread=2.0, distance=0.1)
    errors = np.linspace(-20, 20, 40_001)
    found = loss_plots.density(fit, errors)
    assert found.sum() * 0.001 == pytest.approx(1, abs=2e-3)
    assert (found * errors).sum() * 0.001 == pytest.approx(0.3, abs=2e-3)


def test_a_density_that_is_not_known_is_nowhere() -> None:
    errors = np.zeros(3)
    assert not loss_plots.density(Fit(shape="cauchy", centre=0.0, spread=1.0, distance=0.0), errors).any()
    assert not loss_plots.density(Fit(shape="uniform", centre=0.0, spread=0.0, distance=0.0), errors).any()
