"""Errors of bodies: hand-computed cases, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dto_pipeline.evaluate.bodies import aligned_error, mean_distance


def bodies(seed: int, count: int = 2, points: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.5, (count, points, 3)) + np.array([0.3, -0.2, 4.0])


def test_a_shifted_body_is_wrong_by_its_shift_and_right_after_alignment() -> None:
    truth = bodies(2)
    found = truth + np.array([0.0, 0.3, 0.4])
    assert np.allclose(mean_distance(found, truth), 0.5)
    assert mean_distance(truth, truth).tolist() == [0.0, 0.0]
    assert np.allclose(aligned_error(found, truth), 0, atol=1e-12)
    truth, found = np.zeros((1, 4, 3)), np.zeros((1, 4, 3))
    found[0, 3] = [0.0, 0.03, 0.04]
    assert mean_distance(found, truth)[0] == pytest.approx(0.05 / 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0), st.floats(-3.0, 3.0))
def test_the_aligned_error_does_not_see_similarities(seed: int, scale: float, angle: float) -> None:
    truth, found = bodies(seed, 1), bodies(seed + 1, 1)
    turn = Rotation.from_rotvec([angle, -angle / 2, 0.3]).as_matrix()
    moved = scale * found @ turn + [1.0, -2.0, 0.5]
    assert np.allclose(aligned_error(moved, truth), aligned_error(found, truth), atol=1e-9)
    assert np.allclose(aligned_error(scale * truth @ turn + 1.0, truth), 0, atol=1e-9)


def test_a_mirrored_body_stays_wrong() -> None:
    truth = bodies(7, 1)
    assert aligned_error(truth * [-1, 1, 1], truth)[0] > 0.05


def test_bodies_that_cannot_be_aligned_have_no_error_and_do_not_decide_for_others() -> None:
    good, other = bodies(8, 2)
    broken, point = good.copy(), np.ones((24, 3))
    broken[0, 0] = np.nan
    error = aligned_error(np.stack([good, point, good, broken]), np.stack([other, good, point, good]))
    assert np.isnan(error).tolist() == [False, True, True, True]
    assert np.array_equal(error[:1], aligned_error(good[None], other[None]))
    none = np.zeros((0, 24, 3))
    assert aligned_error(none, none).shape == mean_distance(none, none).shape == (0,)
