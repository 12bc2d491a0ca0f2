from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest
from sample_report import bare, hostile, refused, sample

from flyweight.core.report import Report
from flyweight.report.html import to_html

HOSTILE = "<script>alert(1)</script>\"><img src=x onerror=alert(1)>' {{ 7 * 7 }}"
VOID = {"meta", "br", "img", "link", "hr", "input"}


REPORTS: dict[str, Callable[[], Report]] = {
    "shipped": sample,
    "many layers": lambda: sample(75),
    "refused": refused,
    "bare": bare,
    "hostile": lambda: hostile(HOSTILE),
}


@cache
def _page(name: str) -> str:
    return to_html(REPORTS[name]())


class _Tags(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes.extend(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", REPORTS)
def test_page_is_well_formed_and_self_contained(name: str) -> None:
    page = _page(name)
    tags = _Tags(page)
    assert not tags.open
    assert not {"script", "link", "img", "iframe", "object", "a", "base", "form"} & set(tags.seen)
    assert not [name for name, _ in tags.attributes if name.startswith("on")]
    assert "http:" not in page
    assert "https:" not in page


def test_hostile_names_stay_text_everywhere() -> None:
    page = _page("hostile")
    assert page.count("&lt;script&gt;") > 20
    assert "<script" not in page
    assert "<img" not in page
    assert "{{ 7 * 7 }}" in page


def test_control_characters_and_surrogates_do_not_reach_the_page() -> None:
    page = to_html(hostile("a\x00b\x1bc\ud800d\u202ee"))
    assert "a?b?c?d?e" in page
    page.encode("utf-8")


def test_policy_forbids_everything_but_inline_style() -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in _page("shipped")


def test_page_begins_with_the_verdict_and_its_reasons() -> None:
    assert (
        "<strong>Shipped:</strong> 3.69\N{MULTIPLICATION SIGN} smaller, 2.57\N{MULTIPLICATION SIGN} faster"
        in _page("shipped")
    )
    page = _page("refused")
    assert "<strong>Refused</strong>" in page
    assert all(f"<li>{reason}</li>" in page for reason in refused().verdict.reasons)


def test_page_says_which_energy_is_estimated() -> None:
    assert "Energy (estimated)" in _page("shipped")


def test_every_figure_has_alternative_text_and_caption() -> None:
    page = _page("shipped")
    assert page.count("<svg") == page.count('role="img"') == page.count("<figcaption>") == 8
    assert not re.search(r'aria-label="\s*"', page)


def test_what_was_not_measured_is_left_out() -> None:
    page = _page("bare")
    assert page.count("<svg") == 2
    for absent in ("Peak memory", "Energy", "Calibration error", "Worst", "Notes", "Machine", "None"):
        assert absent not in page


def test_every_layer_is_in_the_table() -> None:
    assert _page("many layers").count("<td>conv2d</td>") == 75


def test_page_says_where_quality_is_lost_and_what_that_was_measured_on() -> None:
    page = _page("shipped")
    assert "With all 18 quantized layers, the model&#39;s output moves by 0.031" in page
    assert (
        "Measured on the PyTorch reference with 64 calibration examples, not on the file; the effect on the "
        "output with 32 of them; only the 16 of 18 layers with the largest error were tried alone; one width "
        "higher is rounded to nearest, and skipped where that does no less." in page
    )
    rows = re.findall(r'<tr><th scope="row" class="name">(?:(?!</tr>).)*Uniform, 1.0 % off', page)
    assert len(rows) == 18


def test_a_page_of_an_unquantized_model_has_no_part_on_losses() -> None:
    assert "Where quality is lost" not in _page("bare")
    empty = replace(sample(4).analysis, layers=())
    assert "Where quality is lost" not in to_html(replace(sample(4), analysis=empty))


def test_one_report_gives_one_text() -> None:
    assert to_html(sample()) == _page("shipped")
