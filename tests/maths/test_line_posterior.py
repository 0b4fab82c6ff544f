"""The zoomed grid against a dense one: what the fixed number of steps costs."""

from __future__ import annotations

import numpy as np
import pytest

from dto_pipeline.maths import line_posterior
from dto_pipeline.scene import GroupFits
from tests.maths.test_crowd_solver import crowd


def random_crowds() -> GroupFits:
    """Eight crowds of people unlike their labels and each other, a few of them with gross errors, with an offset."""
    rng = np.random.default_rng(3)
    shape = (8, 5)
    z = rng.uniform(2.0, 14.0, shape)
    height = rng.choice([0.8, 1.1, 1.45, 1.6, 1.75, 1.9], shape)
    error = 0.03 * rng.standard_t(2, shape)
    return crowd(z.tolist(), height.tolist(), error=error.clip(-0.5, 0.5).tolist(), line=(480.0, 8.0), inverse=True)


def test_the_zoomed_grid_agrees_with_a_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = random_crowds()
    for name, size in (("_FIRST_GRID", (121, 41)), ("_ZOOM_GRID", (61, 41)), ("_LAST_GRID", (61, 41))):
        monkeypatch.setattr(line_posterior, name, size)
    dense = random_crowds()
    assert quick.posterior is not None
    assert dense.posterior is not None
    sigma = dense.posterior.z_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    off = ((quick.new_z - dense.new_z) / sigma).abs()
    assert off.max() < 0.1  # standard deviations
    ratio = quick.posterior.z_covariance.diagonal(dim1=-2, dim2=-1).sqrt() / sigma
    assert (ratio - 1).abs().max() < 0.1
