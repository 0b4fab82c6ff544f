"""Small crowds to train on: whole, recognised, with the truth beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.marker import DemoDataError
from dto_pipeline.lab.training_crowds import CrowdSettings, build_crowds
from dto_pipeline.lab.write import TRUTH, image_name
from dto_pipeline.models.body import BodyModel


def test_crowds_are_written_once_with_their_truth_and_recognised(body: BodyModel, tmp_path: Path) -> None:
    settings = CrowdSettings(images=2, seed=9, scale=0.25)
    assert build_crowds(tmp_path, body, settings)
    assert not build_crowds(tmp_path, body, settings)
    with Image.open(tmp_path / "images" / image_name(0)) as picture:
        assert picture.size == (160, 120)
    with np.load(tmp_path / TRUTH, allow_pickle=False) as truth:
        planned = [plan_crowd(9, number).num_people for number in range(2)]
        assert np.bincount(truth["image_number"]).tolist() == planned
    with pytest.raises(DemoDataError, match="images: 2 there, 3 wanted"):
        build_crowds(tmp_path, body, CrowdSettings(images=3, seed=9, scale=0.25))


def test_a_smaller_view_shows_the_same() -> None:
    view = plan_crowd(9, 0).view
    point = np.array([0.3, 0.8, 5.0])
    assert view.scaled(0.5).project(point) == pytest.approx(view.project(point) / 2)
