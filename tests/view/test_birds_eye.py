"""The view from above: metres land where they should."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.view.birds_eye import draw_birds_eye, plan_view
from dto_pipeline.view.palette import person_colours

K = np.array([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
places_strategy = st.lists(st.tuples(st.floats(-8, 8), st.floats(0.5, 40)), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(places_strategy)
def test_everybody_and_the_camera_are_on_the_plan(places: list[tuple[float, float]]) -> None:
    plan = plan_view(np.array(places), (500, 400))
    pixels = plan.to_pixels(np.array([*places, (0.0, 0.0)]))
    assert (pixels >= 0).all()
    assert (pixels <= (500, 400)).all()


def test_farther_is_higher_and_right_is_right() -> None:
    plan = plan_view(np.array([[0.0, 3.0], [1.0, 6.0]]), (500, 400))
    near, far = plan.to_pixels(np.array([[0.0, 3.0], [1.0, 6.0]]))
    assert far[1] < near[1]
    assert far[0] > near[0]
    np.testing.assert_allclose(np.abs(far - near), [plan.scale, 3 * plan.scale])


def test_a_person_is_a_disc_of_its_colour_and_the_truth_a_hollow_one() -> None:
    places, truth = np.array([[0.0, 3.0], [1.5, 5.0]]), np.array([[0.0, 3.0], [-1.5, 5.0]])
    plan = plan_view(np.concatenate([places, truth]), (500, 400))
    figure = np.asarray(draw_birds_eye(places, K, 640, plan, truth=truth))
    column, row = np.round(plan.to_pixels(places[1])).astype(int)
    assert figure[row, column].tolist() == person_colours(2)[1].tolist()
    column, row = np.round(plan.to_pixels(truth[1]) - (4, 0)).astype(int)
    assert figure[row, column].tolist() != person_colours(2)[1].tolist()


def test_a_longer_bar_shows_a_less_certain_distance() -> None:
    places = np.array([[0.0, 4.0]])
    plan = plan_view(places, (500, 400))

    def picture(sigma: float) -> np.ndarray:
        return np.asarray(draw_birds_eye(places, K, 640, plan, z_sigma=np.array([sigma]))).astype(int)

    def added(sigma: float) -> int:
        return int((np.abs(picture(sigma) - picture(float("nan"))).sum(-1) > 60).sum())

    assert added(1.5) > added(0.5) > added(0.05) > 0  # also one that is smaller than the disc


def test_somebody_without_a_place_is_left_out() -> None:
    places = np.array([[0.0, 3.0], [np.nan, np.nan]])
    figure = np.asarray(draw_birds_eye(places, K, 640, plan_view(places, (400, 300))))
    colour = person_colours(2)[1]
    assert not (figure == colour).all(-1).any()
