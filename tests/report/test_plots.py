from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
from sample_report import bare, hostile, refused, sample

from flyweight.core.report import Report
from flyweight.report import loss_plots, plots


def ranking(report: Report) -> str:
    assert report.analysis is not None
    return loss_plots.ranking(report.analysis)


def propagation(report: Report) -> str:
    assert report.analysis is not None
    return loss_plots.propagation(report.analysis)


def error_histograms(report: Report) -> str:
    assert report.analysis is not None
    return loss_plots.error_histograms(report.analysis)


PLOTS = (
    plots.before_after,
    plots.latency_distribution,
    plots.layer_bars,
    plots.worst_slices,
    plots.attempts_scatter,
    ranking,
    propagation,
    error_histograms,
)


def _untimed() -> Report:
    """No single call recorded, only its quantiles."""
    report = sample()
    return replace(
        report, original=replace(report.original, latency=replace(report.original.latency, samples_s=()))
    )


@cache
def _drawn(plot: Callable[[Report], str]) -> str:
    return plot(sample(4))


HOSTILE = '<script>alert("1")</script> $\\frac{ \x00\ud800 名前 #010203 url(#x'


@pytest.mark.parametrize("plot", PLOTS)
def test_plot_is_an_svg_without_outside_references(plot: Callable[[Report], str]) -> None:
    svg = _drawn(plot)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    addresses = set(re.findall(r'https?://[^"\s]+', svg))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r'href="(?!#)|url\((?!#)|@import|<style|<metadata|<!DOCTYPE', svg)


@pytest.mark.parametrize("plot", PLOTS)
def test_plot_is_the_same_each_time_and_whatever_the_users_settings(plot: Callable[[Report], str]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path"}):
        assert plot(sample(4)) == _drawn(plot)


def test_plotting_leaves_global_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.before_after(sample())
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("plot", PLOTS)
def test_references_point_to_ids_of_the_same_plot(plot: Callable[[Report], str]) -> None:
    svg = _drawn(plot)
    ids = re.findall(r'\sid="([^"]+)"', svg)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= set(ids)


def test_two_plots_share_no_id() -> None:
    ids = [set(re.findall(r'\sid="([^"]+)"', plot(sample()))) for plot in PLOTS]
    assert sum(map(len, ids)) == len(set().union(*ids))


@pytest.mark.parametrize("plot", PLOTS)
def test_text_and_axes_take_the_colour_of_the_page(plot: Callable[[Report], str]) -> None:
    svg = _drawn(plot)
    assert "fill: currentColor" in svg
    assert "#000000" not in svg


@pytest.mark.parametrize("plot", PLOTS)
def test_names_are_text_whatever_they_hold(plot: Callable[[Report], str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = plot(hostile(HOSTILE))
    ElementTree.fromstring(svg)
    assert "<script" not in svg


@pytest.mark.parametrize("layers", [1, 130])
def test_every_layer_has_its_own_row(layers: int) -> None:
    report = sample(layers=layers)
    numbered = replace(
        report, layers=tuple(replace(x, name=f"layer{i}") for i, x in enumerate(report.layers))
    )
    rows = sorted(
        float(element.attrib["y"])
        for element in ElementTree.fromstring(plots.layer_bars(numbered)).iter(
            "{http://www.w3.org/2000/svg}text"
        )
        if (element.text or "").startswith("layer")
    )
    assert len(rows) == min(layers, plots.MAX_LAYERS)
    assert all(below - above >= 8 for above, below in pairwise(rows))  # the text is 7.5 high


def test_too_many_layers_leave_out_the_best() -> None:
    layers = sample(layers=130).layers
    drawn = plots.drawn_layers(layers)
    left_out = [layer for layer in layers if layer not in drawn]
    assert min(x.output_sqnr_db or 0 for x in left_out) >= max(x.output_sqnr_db or 0 for x in drawn)
    assert list(drawn) == sorted(drawn, key=layers.index)


def test_many_slices_are_cut_to_the_worst() -> None:
    report = sample()
    slices = tuple(
        replace(report.comparison.slices[0], name=f"part{i}", compressed=0.9 - i / 100) for i in range(40)
    )
    svg = plots.worst_slices(replace(report, comparison=replace(report.comparison, slices=slices)))
    assert "part39" in svg
    assert svg.count(">part") == plots.MAX_SLICES


def test_nothing_to_draw_is_an_error() -> None:
    for plot in (plots.layer_bars, plots.worst_slices, plots.attempts_scatter):
        with pytest.raises(ValueError, match="to draw"):
            plot(bare())


@pytest.mark.parametrize("report", [bare(), refused(), _untimed()])
def test_sparse_and_negative_measurements_are_drawn(report: Report) -> None:
    ElementTree.fromstring(plots.before_after(report))
    ElementTree.fromstring(plots.latency_distribution(report))
