"""Meshes and numbers over a photograph, people from above, the fit: everything lands where its numbers say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dto_pipeline.collate import keep_labels
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.drawing import (
    _TAG,
    INK,
    draw_birds_eye,
    draw_depth_map,
    draw_fit,
    draw_meshes,
    person_colours,
    show_picture,
    spread_labels,
)
from tests.crowds import Stander, make_scene

BOUNDS = np.array([640.0, 480.0])
positions = st.tuples(st.floats(-50, 700), st.floats(-50, 520))
K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
WIDE = np.array([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
GREY = np.full((240, 320, 3), 128, dtype=np.uint8)


def picture_of(draw: Callable[[Axes], object], size: tuple[int, int] = (500, 400)) -> np.ndarray:
    """(H, W, 3) uint8 of axes that fill a figure."""
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    canvas = FigureCanvasAgg(figure)
    draw(figure.add_axes((0, 0, 1, 1)))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_meshes_of_those_present_colour_their_pixels_and_nothing_else(body: BodyModel) -> None:
    """Two people standing side by side, 4 and 6 m away."""
    pose = torch.zeros(2, 72)
    pose[:, 0] = np.pi
    vertices = body.vertices(pose, torch.zeros(2, 11), torch.tensor([[-0.8, 0.1, 4.0], [0.9, 0.1, 6.0]]))

    def drawn(present: bool) -> tuple[np.ndarray, dict[int, tuple[float, float]]]:
        who = torch.full((1, 2), present)
        ((picture, tops),) = draw_meshes(GREY, vertices[None], who, body.faces, torch.from_numpy(K)[None], 320)
        return picture.astype(int), tops

    pixels, tops = drawn(True)
    assert pixels.shape == (480, 640, 3)  # twice as fine
    chest = 120 + 300 * 0.1 / 4  # the first person's middle
    assert np.abs(pixels[int(2 * chest), int(2 * (160 - 300 * 0.8 / 4))] - 128).max() > 30
    assert (pixels[:10] == 128).all()
    assert (pixels[:, :40] == 128).all()
    assert tops[0][0] == pytest.approx(2 * (160 - 300 * 0.8 / 4), abs=20)
    assert tops[0][1] < 2 * chest
    pixels, tops = drawn(False)
    assert (pixels == 128).all()
    assert tops == {}


@settings(max_examples=60, deadline=None)
@given(st.lists(positions, min_size=1, max_size=20))
def test_numbers_never_overlap_nor_leave_the_figure(anchors: list[tuple[float, float]]) -> None:
    centres = spread_labels(np.array(anchors), BOUNDS)
    assert (centres >= _TAG / 2).all()
    assert (centres <= BOUNDS - _TAG / 2).all()
    apart = (np.abs(centres[:, None] - centres) >= _TAG).any(axis=-1)
    assert apart[~np.eye(len(anchors), dtype=bool)].all()


def test_a_number_with_room_stays_at_its_anchor() -> None:
    anchors = np.array([[100.0, 100.0], [300.0, 200.0]])
    np.testing.assert_allclose(spread_labels(anchors, BOUNDS), anchors)


def test_colours_of_a_large_crowd_are_all_different() -> None:
    assert len(np.unique(person_colours(24), axis=0)) == 24


def with_map(body: BodyModel, disparity: np.ndarray | None) -> PlacedScene:
    placed = keep_labels(make_scene(body, [Stander(x=0, z=4)], size=(60, 80)))
    placed.scene.disparity = disparity
    return placed


def test_near_is_brighter_than_far_and_a_constant_map_is_drawn(body: BodyModel) -> None:
    disparity = np.tile(np.linspace(1, 9, 80), (60, 1))
    picture = picture_of(lambda axes: draw_depth_map(axes, with_map(body, disparity)), (160, 120))
    assert picture[:, -1].mean() > picture[:, 0].mean() + 60
    for constant in (1.0, np.nan):
        flat = with_map(body, np.full((60, 80), constant))
        picture_of(partial(draw_depth_map, placed=flat), (160, 120))


def test_what_is_missing_is_named_in_its_place(body: BodyModel) -> None:
    def with_reason(reason: str) -> np.ndarray:
        return picture_of(lambda axes: show_picture(axes, GREY, {}, reason))

    assert (with_reason("no photograph: the file was not found") != with_reason("")).any()
    assert picture_of(lambda axes: draw_depth_map(axes, with_map(body, None))).min() < 60  # letters


def above(places: np.ndarray, shown: np.ndarray | None = None, **kept: np.ndarray) -> np.ndarray:
    shown = places if shown is None else shown
    return picture_of(lambda axes: draw_birds_eye(axes, places, WIDE, 640, shown, **kept))


def pixels_of(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.abs(picture - 255 * colour).max(axis=-1) <= 1


def middle_of(picture: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """(u, v) of the middle of all pixels of a colour; NaN where there is none."""
    v, u = np.nonzero(pixels_of(picture, colour))
    return np.array([u.mean(), v.mean()]) if len(u) else np.full(2, np.nan)


@pytest.mark.parametrize("far", [6.0, 15.0, 40.0])
def test_farther_is_higher_right_is_right_and_both_axes_share_a_scale(far: float) -> None:
    places = np.array([[-1.0, 3.0], [-1.0, far], [2.0, 3.0]])
    near, behind, right = (middle_of(above(places), colour) for colour in person_colours(3))
    scale = (near[1] - behind[1]) / (far - 3)
    assert (right[0] - near[0]) / 3 == pytest.approx(scale, abs=2)  # discs under numbers are seen in part
    assert scale > 0


def test_the_truth_is_a_hollow_disc_and_who_has_no_place_is_left_out() -> None:
    places, truth = np.array([[0.0, 3.0], [np.nan, np.nan]]), np.array([[0.0, 3.0], [-1.5, 5.0]])
    first, second = person_colours(2)
    hollow, filled = pixels_of(above(places, truth, truth=truth), second).sum(), pixels_of(above(truth), second).sum()
    assert 0 < hollow < filled / 2
    assert not pixels_of(above(places, truth), second).any()
    assert pixels_of(above(places, truth), first).any()


def test_a_longer_bar_shows_a_less_certain_distance() -> None:
    places = np.array([[0.0, 4.0]])

    def added(sigma: float) -> int:
        plain, marked = (above(places, z_sigma=np.array([value])).astype(int) for value in (np.nan, sigma))
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


def fit_of(placed: PlacedScene) -> np.ndarray:
    return picture_of(lambda axes: draw_fit(axes, placed))


def test_people_and_their_line_are_drawn(body: BodyModel) -> None:
    pixels = fit_of(fitted(body, [0.01, 0.02, 0.04, 0.05], [0, 0, 1, 1], 200.0))
    for person, colour in enumerate(person_colours(4)):
        assert pixels_of(pixels, colour).sum() > 30, person
    assert pixels_of(pixels, np.array(to_rgb(INK))).sum() > 30


def test_one_line_for_near_and_far_people_is_drawn_along_all_of_them(body: BodyModel) -> None:
    def drawn(group: list[int]) -> np.ndarray:
        placed = fitted(body, [0.01, 0.02, 0.04, 0.05], group, 200.0)
        placed.beta = (1.0, 1.0)
        return fit_of(placed)

    assert (drawn([0, 0, 0, 1]) == drawn([0, 0, 0, 0])).all()


def test_people_without_evidence_are_left_out_of_the_fit(body: BodyModel) -> None:
    pixels = fit_of(fitted(body, [np.nan] * 2, [-1, -1], np.nan))
    assert (pixels == 255).all(axis=-1).mean() > 0.9
    assert pixels_of(fit_of(fitted(body, [0.02], [0], np.nan)), person_colours(1)[0]).any()
