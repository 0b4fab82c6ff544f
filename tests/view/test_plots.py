"""Figures with axes: metres land where they should, histograms count what they were given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.drawing import INK, PAPER, person_colours
from dto_pipeline.view.plots import Chart, Histogram, draw_birds_eye, draw_fit, draw_histogram
from tests.crowds import Stander, make_scene

K = np.array([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
EDGES = np.arange(0.0, 5.0)


def above(places: np.ndarray, shown: np.ndarray | None = None, **kept: np.ndarray) -> Image.Image:
    return draw_birds_eye(places, K, 640, (500, 400), places if shown is None else shown, **kept)


def middle_of(picture: Image.Image, colour: np.ndarray) -> np.ndarray:
    """(u, v) of the middle of all pixels of a colour; NaN where there is none."""
    v, u = np.nonzero((np.asarray(picture) == colour).all(axis=-1))
    return np.array([u.mean(), v.mean()]) if len(u) else np.full(2, np.nan)


@pytest.mark.parametrize("far", [6.0, 15.0, 40.0])
def test_farther_is_higher_right_is_right_and_both_axes_share_a_scale(far: float) -> None:
    places = np.array([[-1.0, 3.0], [-1.0, far], [2.0, 3.0]])
    picture = above(places)
    near, behind, right = (middle_of(picture, colour) for colour in person_colours(3))
    assert behind[1] < near[1]
    assert right[0] > near[0]
    scale = (near[1] - behind[1]) / (far - 3)
    assert (right[0] - near[0]) / 3 == pytest.approx(scale, abs=2 / 3)  # discs under tags are seen in part
    assert (np.array([near, behind, right]) >= 0).all()


def test_the_truth_is_a_hollow_disc_and_who_has_no_place_is_left_out() -> None:
    places, truth = np.array([[0.0, 3.0], [np.nan, np.nan]]), np.array([[0.0, 3.0], [-1.5, 5.0]])
    first, second = person_colours(2)
    hollow = (np.asarray(above(places, truth, truth=truth)) == second).all(axis=-1).sum()
    filled = (np.asarray(above(truth)) == second).all(axis=-1).sum()
    assert 0 < hollow < filled / 2
    assert np.isnan(middle_of(above(places, truth), second)).all()
    assert np.isfinite(middle_of(above(places, truth), first)).all()


def test_a_longer_bar_shows_a_less_certain_distance() -> None:
    places = np.array([[0.0, 4.0]])

    def added(sigma: float) -> int:
        plain, marked = (np.asarray(above(places, z_sigma=np.array([value]))).astype(int) for value in (np.nan, sigma))
        return int((np.abs(marked - plain).sum(-1) > 60).sum())

    assert added(1.5) > added(0.5) > added(0.05) > 0  # also one that is smaller than the disc


def fitted(body: BodyModel, depth: list[float], group: list[int], alpha: float) -> PlacedScene:
    """People at z = 3, 5, 12, 14 m and their fit; labels stand a fifth farther."""
    standers = [Stander(x=0, z=1.2 * z) for z in (3, 5, 12, 14)[: len(depth)]]
    placed = keep_labels(make_scene(body, standers, size=(120, 160)))
    placed.transl = placed.scene.transl / 1.2
    placed.depth_mean, placed.depth_group = np.array(depth), np.array(group)
    placed.alpha, placed.beta = (alpha, alpha), (1.0, 4.0)
    return placed


def test_the_line_runs_through_people_who_lie_on_it_and_the_far_group_has_its_own(body: BodyModel) -> None:
    pixels = np.asarray(draw_fit(fitted(body, [0.01, 0.02, 0.04, 0.05], [0, 0, 1, 1], 200.0), (500, 400)))
    for person, colour in enumerate(person_colours(4)):
        assert (np.abs(pixels.astype(int) - colour).sum(axis=-1) < 30).sum() > 40, person
    assert (np.abs(pixels.astype(int) - INK).sum(axis=-1) < 60).any()


def test_one_line_for_near_and_far_people_is_drawn_along_all_of_them(body: BodyModel) -> None:
    def drawn(group: list[int]) -> np.ndarray:
        placed = fitted(body, [0.01, 0.02, 0.04, 0.05], group, 200.0)
        placed.beta = (1.0, 1.0)
        return np.asarray(draw_fit(placed, (500, 400)))

    assert (drawn([0, 0, 0, 1]) == drawn([0, 0, 0, 0])).all()


def test_people_without_evidence_are_left_out_of_the_fit(body: BodyModel) -> None:
    pixels = np.asarray(draw_fit(fitted(body, [np.nan] * 2, [-1, -1], np.nan), (300, 200)))
    assert (pixels == PAPER).all(axis=-1).mean() > 0.9
    assert draw_fit(fitted(body, [0.02], [0], np.nan), (300, 200)).size == (300, 200)


def chart(counts: np.ndarray, edges: np.ndarray = EDGES) -> Chart:
    return Chart("a", Histogram(edges, counts[None]), "m", ["s"])


def bars_of(svg: str) -> np.ndarray:
    """Heights of the corners of the filled shape."""
    found = [e.attrib["d"] for e in ElementTree.fromstring(svg).iter() if "opacity: 0.85" in e.get("style", "")]
    return np.array([float(y) for y in re.findall(r"[ML] \S+ (\S+)", found[0])])


def test_the_highest_bar_is_the_most_counted_bin() -> None:
    y = bars_of(draw_histogram(chart(np.array([1, 0, 4, 2]))))
    heights = np.unique((y.max() - y).round(3))
    assert heights / heights.max() == pytest.approx(np.array([0, 1, 2, 4]) / 4, abs=0.01)


def test_the_same_chart_gives_the_same_text_and_all_its_parts_can_be_drawn() -> None:
    drawn = Chart(
        'a <b> & "c"',
        Histogram(np.geomspace(0.25, 4, 9), np.arange(16).reshape(2, 8)),
        curve=(np.array([0.3, 3.0]), np.array([0.0, 20.0])),
        mark=(1.0, "<one>"),
        logarithmic=True,
    )
    assert draw_histogram(drawn) == draw_histogram(drawn)
    ElementTree.fromstring(draw_histogram(drawn))


def test_a_chart_without_a_single_count_can_be_drawn_and_described() -> None:
    empty = chart(np.zeros(4, int))
    ElementTree.fromstring(draw_histogram(empty))
    assert empty.describe().startswith("s: 0")


def test_the_empty_tail_goes_and_the_counts_stay() -> None:
    counts = np.zeros(50, int)
    counts[[2, 12]] = 3
    short = chart(counts, np.arange(51.0)).without_tail().histogram
    assert short.counts.sum() == 6
    assert len(short.edges) == len(short.counts[0]) + 1 == 15
    assert len(chart(np.zeros(4, int)).without_tail().histogram.edges) == 5
