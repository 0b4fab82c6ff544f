"""Labels keep apart and stay on the figure."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dto_pipeline.view.drawing import PAPER, draw_tags, person_colours, place_boxes

BOUNDS = (640, 480)
positions = st.tuples(st.floats(-50, 700), st.floats(-50, 520))


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
