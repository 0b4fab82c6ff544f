"""Bodies that change shape: heights reached exactly, joints held in the picture."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.axes import KID_AXIS
from dto_pipeline.config import CrowdConfig
from dto_pipeline.maths.refine import hold_joints, reach_height
from dto_pipeline.models.body import BodyModel


@settings(max_examples=12, deadline=None)
@given(st.floats(0.7, 1.5), st.sampled_from([0, KID_AXIS]))
def test_the_wished_height_is_reached_exactly(body: BodyModel, factor: float, index: int) -> None:
    betas = torch.zeros(1, 11, dtype=torch.float64)
    wished = body.rest_height(betas) * factor
    column = torch.full((1, 1), index)
    reached = reach_height(betas, column, wished, torch.tensor([True]), body.rest_height)
    assert abs(body.rest_height(reached) - wished).item() < 1e-9


def test_those_not_chosen_keep_their_shape(body: BodyModel) -> None:
    betas = torch.randn(2, 11, dtype=torch.float64)
    wished = torch.full((2,), 1.5, dtype=torch.float64)
    kept = reach_height(
        betas, torch.zeros(2, 1, dtype=torch.int64), wished, torch.tensor([True, False]), body.rest_height
    )
    assert torch.equal(kept[1], betas[1])
    assert not torch.equal(kept[0], betas[0])


def test_a_scaled_body_is_brought_back_to_its_place() -> None:
    """Unchanged proportions: the place that keeps the picture is the old one times the factor."""
    joints = torch.from_numpy(np.random.default_rng(1).normal(0, 0.4, (3, 24, 3)))
    place = torch.tensor([[0.5, 0.2, 4.0], [-1.0, 0.0, 6.0], [0.0, 0.1, 3.0]], dtype=torch.float64)
    seen = (joints + place[:, None])[..., :2] / (joints + place[:, None])[..., 2:]
    start = 0.8 * place + torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64)
    held = hold_joints(seen, 0.8 * joints, start, CrowdConfig())
    assert torch.allclose(held, 0.8 * place, atol=1e-6)


def test_held_bodies_stray_less_than_those_only_shifted() -> None:
    rng = np.random.default_rng(2)
    joints = torch.from_numpy(rng.normal(0, 0.4, (5, 24, 3)))
    place = torch.tensor([[0.2, 0.1, 4.0]], dtype=torch.float64).expand(5, 3)
    seen = (joints + place[:, None])[..., :2] / (joints + place[:, None])[..., 2:]
    changed = joints * torch.tensor([1.1, 0.9, 1.0]) * 0.9
    shifted = 0.9 * place + (0.9 * joints - changed).mean(1)
    held = hold_joints(seen, changed, 0.9 * place, CrowdConfig())

    def stray(transl: torch.Tensor) -> torch.Tensor:
        placed = changed + transl[:, None]
        return (placed[..., :2] / placed[..., 2:] - seen).norm(dim=-1).mean()

    assert stray(held) < stray(shifted)
