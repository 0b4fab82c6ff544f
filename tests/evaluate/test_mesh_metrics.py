"""Errors of bodies: hand-computed cases, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dto_pipeline.evaluate.mesh_evaluation import (
    Alignment,
    align_similarity,
    aligned_error,
    mean_distance,
    root_relative_error,
    vertical_field_of_view,
)


def bodies(seed: int, count: int = 2, points: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 0.5, (count, points, 3)) + np.array([0.3, -0.2, 4.0])


def test_identical_bodies_have_no_error() -> None:
    same = bodies(1)
    assert mean_distance(same, same).tolist() == [0.0, 0.0]
    assert root_relative_error(same, same, same[:, 0], same[:, 0]).tolist() == [0.0, 0.0]
    assert np.allclose(aligned_error(same, same)[0], 0, atol=1e-12)


def test_a_shifted_body_is_wrong_absolutely_by_its_shift_and_right_relative_to_its_root() -> None:
    truth = bodies(2)
    found = truth + np.array([0.0, 0.3, 0.4])
    assert np.allclose(mean_distance(found, truth), 0.5)
    assert np.allclose(root_relative_error(found, truth, found[:, 0], truth[:, 0]), 0, atol=1e-12)


def test_one_joint_off_by_hand() -> None:
    truth = np.zeros((1, 4, 3))
    found = truth.copy()
    found[0, 3] = [0.0, 0.03, 0.04]
    assert mean_distance(found, truth)[0] == pytest.approx(0.05 / 4)
    found[0, 0] = [0.0, 0.0, 0.1]  # the root itself is off: all others are, by that
    assert root_relative_error(found, truth, found[:, 0], truth[:, 0])[0] == pytest.approx(
        (0 + 0.1 + 0.1 + np.hypot(0.03, 0.06)) / 4
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0), st.floats(-3.0, 3.0))
def test_the_aligned_error_does_not_see_similarities(seed: int, scale: float, angle: float) -> None:
    truth, found = bodies(seed, 1), bodies(seed + 1, 1)
    turn = Rotation.from_rotvec([angle, -angle / 2, 0.3]).as_matrix()
    moved = scale * found @ turn + [1.0, -2.0, 0.5]
    assert np.allclose(aligned_error(moved, truth)[0], aligned_error(found, truth)[0], atol=1e-9)
    assert np.allclose(aligned_error(scale * truth @ turn + 1.0, truth)[0], 0, atol=1e-9)


def test_the_aligned_squared_error_is_never_larger_than_the_unaligned() -> None:
    truth, found = bodies(5, 20), bodies(6, 20)
    aligned = align_similarity(found, truth)[0]
    assert (((aligned - truth) ** 2).sum((1, 2)) <= ((found - truth) ** 2).sum((1, 2)) + 1e-9).all()


def test_a_mirrored_body_stays_wrong() -> None:
    truth = bodies(7, 1)
    error, status = aligned_error(truth * [-1, 1, 1], truth)
    assert error[0] > 0.05
    assert status.tolist() == [Alignment.OK]
    assert align_similarity(truth * [-1, 1, 1], truth)[1][0] > 0


def test_degenerate_bodies_are_named() -> None:
    good = bodies(8, 1)[0]
    point = np.ones((24, 3))
    line = np.linspace(0, 1, 24)[:, None] * [1.0, 2.0, 3.0]
    broken = good.copy()
    broken[0, 0] = np.nan
    found = np.stack([good, point, good, line, broken])
    truth = np.stack([good, good, point, good, good])
    error, status = aligned_error(found, truth)
    assert status.tolist() == [Alignment.OK, Alignment.POINT, Alignment.POINT, Alignment.LINE, Alignment.NOT_FINITE]
    assert np.isnan(error).tolist() == [False, True, True, False, True]


def test_one_broken_body_does_not_decide_for_another() -> None:
    truth, found = bodies(9, 3), bodies(10, 3)
    alone = aligned_error(found[:1], truth[:1])[0]
    found[1] = np.inf
    assert np.array_equal(aligned_error(found, truth)[0][:1], alone)


def test_nobody_is_no_error() -> None:
    none = np.zeros((0, 24, 3))
    assert mean_distance(none, none).shape == (0,)
    assert aligned_error(none, none)[0].shape == (0,)


def test_a_focal_length_of_half_the_height_sees_ninety_degrees() -> None:
    assert vertical_field_of_view(np.array([240.0]), np.array([480.0]))[0] == pytest.approx(90.0)
    assert vertical_field_of_view(np.array([480 / 2 / np.tan(np.pi / 12)]), np.array([480]))[0] == pytest.approx(30.0)
