"""Rotations survive every change of form, and their derivatives stay finite where formulas divide by zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.maths.rotation import axis_angle_to_matrix, matrix_from_6d, matrix_to_axis_angle

ANGLES = st.lists(st.floats(-1.8, 1.8), min_size=3, max_size=3)  # lengths below pi


@given(vector=ANGLES)
@settings(deadline=None)
def test_axis_angle_survives_the_way_through_a_matrix(vector: list[float]) -> None:
    axis_angle = torch.tensor(vector, dtype=torch.float64)
    matrix = axis_angle_to_matrix(axis_angle)
    assert torch.allclose(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(matrix_to_axis_angle(matrix), axis_angle, atol=1e-6)


@given(vector=ANGLES)
@settings(deadline=None)
def test_a_matrix_survives_the_way_through_6d(vector: list[float]) -> None:
    matrix = axis_angle_to_matrix(torch.tensor(vector, dtype=torch.float64))
    assert torch.allclose(matrix_from_6d(matrix[..., :2].transpose(-1, -2).flatten(-2)), matrix, atol=1e-12)


def test_any_six_numbers_give_a_rotation() -> None:
    matrix = matrix_from_6d(torch.tensor([3.0, 1.0, 0.0, 5.0, -2.0, 1.0], dtype=torch.float64))
    assert torch.allclose(matrix @ matrix.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.linalg.det(matrix) == pytest.approx(1.0)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    matrix = axis_angle_to_matrix(torch.tensor([0.0, 0.0, math.pi / 2]))
    assert matrix @ torch.tensor([1.0, 0, 0]) == pytest.approx(torch.tensor([0.0, 1, 0]), abs=1e-6)


@pytest.mark.parametrize("vector", [[0.0, 0, 0], [1e-9, 0, 0], [math.pi, 0, 0], [0, 0, -math.pi], [1e-4, 1e-4, 0]])
def test_derivatives_are_finite_at_no_turn_and_at_half_a_turn(vector: list[float]) -> None:
    axis_angle = torch.tensor(vector, requires_grad=True)
    matrix_to_axis_angle(axis_angle_to_matrix(axis_angle)).sum().backward()
    assert axis_angle.grad is not None
    assert axis_angle.grad.isfinite().all()
