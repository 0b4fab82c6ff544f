"""The whole of learning at once: a small network learns four images by heart."""

from __future__ import annotations

import pytest
import torch

from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.checkpoint import begin_network
from dto_pipeline.train.learner import Learner, evaluate
from tests.train.small_crowds import crowd_batch, tiny_config

FAMILIES = [0, 5, 12, 19]  # pictures of the demo's crowds with 13 people together


@pytest.mark.slow
def test_four_images_are_learnt_to_near_zero_error(body: BodyModel) -> None:
    # a field of view seen in four images only is learnt within the steps if it weighs more than usual
    config = tiny_config(loss__fov=10.0, loop__steps=250, loop__rate=3e-3)
    batch = crowd_batch(body, FAMILIES)
    torch.manual_seed(0)
    learner = Learner(config, begin_network(config)[0], body, torch.device("cpu"))
    before = evaluate(learner.predict, [batch], body)
    for step in range(config.loop.steps):
        learner.step(batch, step)
    measures = evaluate(learner.predict, [batch], body)
    assert measures["persons"] == 13
    assert before["mpjpe"] > 0.2
    assert measures["mpjpe"] < 0.05
    assert before["depth_error"] > 0.5
    assert measures["depth_error"] < 0.12
    assert measures["fov_error"] < 0.02
    assert measures["pair_depth_error"] < 0.03
    assert measures["recall"] == 1.0
    assert measures["precision"] > 0.75
