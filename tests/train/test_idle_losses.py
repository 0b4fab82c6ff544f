"""Losses switched off, or with nobody to learn from: every weight still gets a gradient, which DDP waits for."""

from __future__ import annotations

import pytest
import torch

from dto_pipeline.models.body import load_body
from dto_pipeline.train.checkpoint import build_network
from dto_pipeline.train.dataset import collate_samples
from dto_pipeline.train.losses import compute_losses
from dto_pipeline.train.targets import build_targets
from tests.train.small_crowds import tiny_config

PLACING = ("image_joints", "relative_metric", "relative_layer", "fov")


@pytest.mark.parametrize("off", [(), ("confidence",), PLACING, ("pose", "betas", "joints", *PLACING)])
def test_every_weight_has_a_gradient_whatever_losses_are_switched_off(off: tuple[str, ...]) -> None:
    config = tiny_config(encoder__layers=1, **{f"loss__{name}": 0.0 for name in off})
    torch.manual_seed(0)
    network, body = build_network(config), load_body("demo")
    batch = collate_samples([], config.data.input_size)  # what a rank sees that got no image: nobody

    predictions = network(batch.image, batch.intrinsics)
    total, _ = compute_losses(predictions, build_targets(batch, body), body, config.loss, config.match)
    total.backward()

    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
