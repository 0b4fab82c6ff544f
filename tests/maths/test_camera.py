"""Cameras of images and of person maps."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.maths.camera import map_intrinsics, map_size, project

SIDES = st.integers(16, 4000)


def camera(focal: float, cx: float, cy: float) -> torch.Tensor:
    return torch.tensor([[[focal, 0, cx], [0, focal, cy], [0, 0, 1]]], dtype=torch.float64)


@given(SIDES, SIDES)
def test_a_person_map_is_never_larger_than_its_image_nor_than_the_limit(height: int, width: int) -> None:
    h, w = map_size(height, width, 512)
    assert max(h, w) <= 512
    assert 1 <= h <= height
    assert 1 <= w <= width
    if max(height, width) <= 512:
        assert (h, w) == (height, width)


@given(SIDES, SIDES, st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_points_keep_their_place_relative_to_the_lower_right_corner(
    height: int, width: int, right: float, down: float
) -> None:
    """Also for off-centre principal points, which the published renderer mirrors."""
    k = camera(700, width * (0.5 + right), height * (0.5 + down))
    h, w = map_size(height, width, 512)
    small = map_intrinsics(k, torch.tensor([[height, width]]), torch.tensor([[h, w]]), 512)
    point = torch.tensor([0.3, -0.2, 4.0], dtype=torch.float64)
    scale = min(1, 512 / max(height, width))
    from_corner = (torch.tensor([width, height]) - project(point, k[0])) * scale
    assert torch.allclose(torch.tensor([w, h]) - project(point, small[0]), from_corner)


def test_a_centred_principal_point_follows_the_published_truncation() -> None:
    small = map_intrinsics(camera(700, 341.5, 512), torch.tensor([[1024, 683]]), torch.tensor([[512, 341]]), 512)
    assert small[0, :2, 2].tolist() == [341 - 341.5 / 2, 512 - 256]
