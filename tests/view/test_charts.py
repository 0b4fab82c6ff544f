"""Histograms as SVG: bars where the counts are, words that can be read, nothing that is not XML."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.view.charts import HEIGHT, WIDTH, Chart, Mark, Series, describe_chart, draw_histogram, without_tail
from dto_pipeline.view.fit_plot import round_ticks

EDGES = np.arange(0.0, 5.0)


def path_numbers(svg: str, style: str) -> list[float]:
    (found,) = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter() if e.get("class", "").startswith(style)]
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", found)]


def test_the_highest_bar_is_the_most_counted_bin() -> None:
    svg = draw_histogram(Chart("a", EDGES, [Series("s", np.array([1, 0, 4, 2]))]))
    boxes = np.array(path_numbers(svg, "bars")).reshape(-1, 5)  # left, floor, top, right, floor
    assert len(boxes) == 3  # nothing is drawn for an empty bin
    heights = boxes[:, 1] - boxes[:, 2]
    assert heights == pytest.approx(np.array([1, 4, 2]) * heights[0], abs=0.5)


def test_words_are_escaped_and_everything_stays_inside_the_drawing() -> None:
    chart = Chart(
        'a <b> & "c"',
        np.geomspace(0.25, 4, 9),
        [Series("x", np.arange(8), outline=True)],
        "m",
        curve=(np.array([0.3, 3.0]), np.array([0.0, 20.0])),
        marks=[Mark(1.0, "<one>")],
        logarithmic=True,
    )
    svg = draw_histogram(chart)
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"].startswith('a <b> & "c"')
    for style, step in (("outline", 2), ("curve", 2)):
        numbers = np.array(path_numbers(svg, style)).reshape(-1, step)
        assert (numbers >= 0).all()
        assert (numbers <= [WIDTH, HEIGHT]).all()


def test_a_chart_without_a_single_count_can_be_drawn_and_described() -> None:
    chart = Chart("empty", EDGES, [Series("s", np.zeros(4, int))], "m")
    ElementTree.fromstring(draw_histogram(chart))
    assert describe_chart(chart).startswith("s: 0")


def test_the_empty_tail_goes_and_the_counts_stay() -> None:
    counts = np.zeros(50, int)
    counts[[2, 12]] = 3
    short = without_tail(Chart("a", np.arange(51.0), [Series("s", counts)]))
    assert short.series[0].counts.sum() == 6
    assert len(short.edges) == len(short.series[0].counts) + 1 == 15
    assert len(without_tail(Chart("a", EDGES, [Series("s", np.zeros(4, int))])).edges) == 5


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5), st.integers(2, 10))
def test_ticks_are_round_few_and_inside(low: float, span: float, most: int) -> None:
    high = low + span
    ticks = round_ticks(low, high, most)
    assert len(ticks) <= most + 1
    slack = 1e-6 * max(abs(low), span)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
