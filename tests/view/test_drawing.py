"""Meshes and tags over a photograph, depth maps, and what stands for a photograph that is not there."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dto_pipeline.models.body import BodyModel
from dto_pipeline.view.drawing import (
    PAPER,
    draw_depth_map,
    draw_overlays,
    draw_tags,
    grey_sheet,
    person_colours,
    place_boxes,
)

BOUNDS = (640, 480)
positions = st.tuples(st.floats(-50, 700), st.floats(-50, 520))
K = np.array([[300.0, 0, 160], [0, 300.0, 120], [0, 0, 1]])
GREY = np.full((240, 320, 3), 128, dtype=np.uint8)


def test_meshes_of_those_present_colour_their_pixels_and_nothing_else(body: BodyModel) -> None:
    """Two people standing side by side, 4 and 6 m away."""
    pose = torch.zeros(2, 72)
    pose[:, 0] = np.pi
    vertices = body.vertices(pose, torch.zeros(2, 11), torch.tensor([[-0.8, 0.1, 4.0], [0.9, 0.1, 6.0]]))

    def drawn(present: bool) -> np.ndarray:
        who = torch.full((1, 2), present)
        (figure,) = draw_overlays(GREY, vertices[None], who, body.faces, torch.from_numpy(K)[None], 320)
        return np.asarray(figure).astype(int)

    pixels = drawn(True)
    assert pixels.shape == GREY.shape
    chest = 120 + 300 * 0.1 / 4  # the first person's middle
    assert np.abs(pixels[int(chest), int(160 - 300 * 0.8 / 4)] - 128).max() > 30
    assert (pixels[:5] == 128).all()
    assert (pixels[:, :20] == 128).all()
    assert (drawn(False) == 128).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(positions, min_size=1, max_size=20))
def test_labels_never_overlap_nor_leave_the_figure(anchors: list[tuple[float, float]]) -> None:
    sizes = np.tile([26.0, 18.0], (len(anchors), 1))
    corners = place_boxes(np.array(anchors), sizes, BOUNDS)
    assert (corners >= 0).all()
    assert (corners + sizes <= BOUNDS).all()
    left, top = corners.T
    apart = (np.abs(left[:, None] - left) >= 26) | (np.abs(top[:, None] - top) >= 18)
    assert apart[~np.eye(len(anchors), dtype=bool)].all()


def test_a_label_with_room_stays_at_its_anchor() -> None:
    corners = place_boxes(np.array([[100.0, 100.0], [300.0, 200.0]]), np.array([[20.0, 10.0]] * 2), BOUNDS)
    np.testing.assert_allclose(corners, [[90, 95], [290, 195]])


def test_nobody_to_label_is_fine() -> None:
    figure = Image.new("RGB", (60, 40), PAPER)
    draw_tags(figure, np.zeros((0, 2)), [], person_colours(0))
    assert figure.getcolors() == [(60 * 40, PAPER)]


def test_colours_of_a_large_crowd_are_all_different() -> None:
    assert len(np.unique(person_colours(24), axis=0)) == 24


def brightness(picture: np.ndarray) -> np.ndarray:
    return picture.astype(float) @ [0.299, 0.587, 0.114]


def test_near_is_brighter_than_far_and_a_constant_map_is_drawn() -> None:
    disparity = np.tile(np.linspace(1, 9, 80), (60, 1))
    picture = brightness(np.asarray(draw_depth_map(disparity, (160, 120)))[:80])
    assert (np.diff(picture.mean(axis=0)) > -0.5).all()
    assert picture[:, -1].mean() > picture[:, 0].mean() + 100
    assert np.asarray(draw_depth_map(np.ones((60, 80)), (160, 120)))[:80].std() < 60
    draw_depth_map(np.full((60, 80), np.nan), (160, 120))


def test_a_grey_sheet_says_why() -> None:
    sheet = grey_sheet((400, 300), "no photograph: the file was not found")
    assert sheet.shape == (300, 400, 3)
    assert (brightness(sheet) < 100).any()
