"""Losses of predictions made by hand; that they equal the published ones is for `tests/lab/test_golden_mahmr.py`."""

from __future__ import annotations

import dataclasses
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.blocks import Known
from dto_pipeline.train.checkpoint import begin_network
from dto_pipeline.train.config import LossConfig, load_train_config
from dto_pipeline.train.learner import Learner
from dto_pipeline.train.losses import Losses, compute_losses, generalised_iou, match_people
from dto_pipeline.train.model import Predictions, with_joints
from dto_pipeline.train.targets import Targets
from tests.train.known_predictions import perfect_predictions
from tests.train.small_crowds import standing_batch, tiny_config

PAPER = load_train_config(None, ["loss.preset=paper"]).loss
CPU = torch.device("cpu")


def losses_of(predictions: Predictions, targets: Targets, config: LossConfig | None = None) -> Losses:
    return compute_losses(predictions, targets, match_people(predictions, targets), config or LossConfig())


def moved(predictions: Predictions, body: BodyModel, **changes: Any) -> Predictions:
    found = dataclasses.replace(predictions, **changes)
    depths = torch.stack([found.transl[..., 2], found.transl[..., 2] / found.intrinsics[:, None, 0, 0]], dim=-1)
    return with_joints(dataclasses.replace(found, depths=depths), body)


@pytest.mark.parametrize("config", [LossConfig(inverse_depth=0.5), PAPER], ids=["ours", "paper"])
def test_right_predictions_cost_nothing(body: BodyModel, config: LossConfig) -> None:
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.4)], [(0.0, 4.0)]])
    losses = losses_of(perfect_predictions(batch, body, 5), batch.targets, config)
    wrong = {name: float(term) for name, term in losses.terms.items() if losses.weights[name] and float(term) > 1e-5}
    assert not wrong


def test_every_layer_is_matched_by_itself(body: BodyModel) -> None:
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.4)]])
    right = perfect_predictions(batch, body, 4, layers=2)
    swapped: dict[str, Any] = {
        name: torch.stack([getattr(right, name)[0].flip(1), getattr(right, name)[1]])
        for name in ("confs", "boxes", "poses", "betas", "transl", "depths", "j3ds", "j2ds")
    }
    matches = match_people(dataclasses.replace(right, **swapped), batch.targets)
    assert [
        sorted(zip(*(part[k].tolist() for part in (matches.query, matches.person)), strict=True)) for k in (0, 1)
    ] == [
        [(2, 1), (3, 0)],
        [(0, 0), (1, 1)],
    ]


def test_more_people_than_queries_leave_the_worst_out_and_break_nothing(body: BodyModel) -> None:
    batch = standing_batch([[(-0.6, 3.0), (0.0, 3.2), (0.6, 3.4)], [(0.0, 4.0)]])
    right = perfect_predictions(batch, body, 3)
    few: dict[str, Any] = {
        name: getattr(right, name)[:, :, :2]
        for name in ("confs", "boxes", "poses", "betas", "transl", "depths", "j3ds", "j2ds")
    }
    losses = losses_of(dataclasses.replace(right, **few), batch.targets)
    assert losses.total.isfinite()


def test_the_relative_metric_loss_is_a_mean_over_near_pairs_of_the_batch(body: BodyModel) -> None:
    batch = standing_batch([[(-0.6, 3.0), (0.0, 3.5), (0.6, 5.5)], [(0.0, 4.0)]])
    right = perfect_predictions(batch, body, 4)
    shift = torch.zeros_like(right.transl)
    shift[0, 0, 1, 2] = 0.2
    losses = losses_of(moved(right, body, transl=right.transl + shift), batch.targets)
    assert float(losses.terms["depths_mt"]) == pytest.approx(math.log(1.2), rel=1e-4)  # the far pair does not count


def test_pairs_count_by_how_surely_the_labels_know_them(body: BodyModel) -> None:
    batch = standing_batch([[(-0.6, 3.0), (0.0, 3.4), (0.6, 3.6)]])
    covariance = torch.zeros(3, 3)
    covariance[2, 2] = 0.81  # of the third person little is known
    targets = dataclasses.replace(batch.targets, z_covariance=covariance)
    right = perfect_predictions(batch, body, 4)
    shift = torch.zeros_like(right.transl)
    shift[0, 0, 2, 2] = 0.1
    wrong = moved(right, body, transl=right.transl + shift)
    sure, unsure = (
        losses_of(wrong, one, LossConfig(pair_sigma=0.3)).terms["depths_mt"] for one in (batch.targets, targets)
    )
    weight = 1 / (1 + 0.81 / 0.09)
    assert float(sure) == pytest.approx(2 / 3 * math.log(1.1), rel=1e-4)
    assert float(unsure) == pytest.approx(2 * weight * math.log(1.1) / (1 + 2 * weight), rel=1e-4)
    same = losses_of(wrong, targets, LossConfig(pair_sigma=0.0)).terms["depths_mt"]
    assert float(same) == pytest.approx(float(sure))


def test_unknown_layers_of_depth_say_nothing(body: BodyModel) -> None:
    batch = standing_batch([[(-0.6, 3.0), (0.0, 3.4), (0.6, 3.6)]])
    right = perfect_predictions(batch, body, 4)
    layers = {"known": [2, 0, 1], "one": [2, -1, -1]}
    found = {
        name: float(
            losses_of(right, dataclasses.replace(batch.targets, depth_layer=torch.tensor(one))).terms["depths_re"]
        )
        for name, one in layers.items()
    }
    assert found["one"] == 0
    pairs = [math.log1p(math.exp(d)) for d in (0.4, 0.6, -0.2)]
    assert found["known"] == pytest.approx(np.mean(pairs), rel=1e-4)


def test_a_field_of_view_is_averaged_over_images_with_a_camera_and_summed_as_published(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0)], [(0.0, 3.0)], [(0.0, 3.0)]])
    focals = batch.targets.image_focals * torch.tensor([1.0, 1, 0])
    targets = dataclasses.replace(batch.targets, image_focals=focals)
    right = perfect_predictions(batch, body, 2)
    camera = right.intrinsics.clone()
    camera[:, 0, 0] = camera[:, 1, 1] = 0.5 * camera[:, 0, 0]
    wrong = dataclasses.replace(right, intrinsics=camera)
    ours, paper = (float(losses_of(wrong, targets, config).terms["fov"]) for config in (LossConfig(), PAPER))
    assert paper == pytest.approx(2 * ours)
    over = 2 * (math.atan(56 / float(camera[0, 0, 0])) - math.atan(56 / float(focals[0])))
    assert ours == pytest.approx(3 * over**2, rel=1e-5)


def test_a_pose_that_differs_by_a_whole_turn_is_right_and_wrong_as_published(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0)]])
    right = perfect_predictions(batch, body, 2)
    poses = right.poses.clone()
    poses[..., 0, 0] -= 2 * math.pi
    turned = moved(right, body, poses=poses)
    assert float(losses_of(turned, batch.targets).terms["poses"]) == pytest.approx(0, abs=1e-5)
    assert float(losses_of(turned, batch.targets, PAPER).terms["poses"]) == pytest.approx(2 * math.pi / 72, rel=1e-4)


@pytest.mark.parametrize("preset", ["ours", "paper"])
def test_the_four_inputs_that_stop_the_original_are_learnt_from(body: BodyModel, preset: str) -> None:
    everything = {f"loss__{name}": 0.5 for name in ("relative_metric", "relative_layer", "fov", "inverse_depth")}
    config = tiny_config(loss__preset=preset, model__denoising=2, model__betas=10, **everything)
    torch.manual_seed(0)
    learner = Learner(config, begin_network(config)[0], body, CPU)
    crowd = standing_batch([[(-0.5, 3.0), (0.5, 3.4)], []])  # an image without people, with fov and denoising
    flat = dataclasses.replace(crowd.targets, has_body=torch.tensor([False, False]))  # known in the picture only
    for batch in (crowd, dataclasses.replace(crowd, targets=flat), standing_batch([[]])):
        values = learner.step(batch, 0)
        assert math.isfinite(values["loss"])
        assert values["skipped_step"] == 0


def test_relative_human_is_learnt_through_its_fourteen_joints(body: BodyModel) -> None:
    regressor = files("dto_pipeline.assets") / "J_regressor_extra.npy"
    config = tiny_config(loss__preset="paper", data__regressor=str(regressor), loss__relative_layer=0.5)
    torch.manual_seed(0)
    learner = Learner(config, begin_network(config)[0], body, CPU)
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.4)]])
    found = learner.predict(batch)
    assert found.j2ds is not None
    assert found.j2ds.shape[3] == 47
    places = torch.nn.functional.pad(batch.targets.j2ds, (0, 0, 0, 2))
    seen = torch.zeros(2, 47, 2, dtype=torch.bool)
    seen[:, 45:] = True
    flat = dataclasses.replace(
        batch.targets, has_body=torch.tensor([False, False]), j2ds=places, j2ds_mask=seen,
        num_joints=torch.tensor([14.0, 14.0]), depth_layer=torch.tensor([0, 1]),
    )  # fmt: skip
    matches = match_people(found, flat)
    losses = compute_losses(found, flat, matches, config.loss)
    query, person = matches.query[-1], matches.person[-1]
    apart = (found.j2ds[-1, 0, query, 45:] - places[person, 45:]).abs().sum((-1, -2)) / found.input_size
    assert float(losses.terms["j2ds"]) == pytest.approx(float(apart.mean() / 28), rel=1e-4)
    assert float(losses.terms["depths_re"]) > 0
    assert learner.step(dataclasses.replace(batch, targets=flat), 0)["skipped_step"] == 0


def test_a_regressor_of_another_body_is_refused(body: BodyModel, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", np.zeros((9, 100)))
    for name, said in (("other.npy", r"shape \(9, 100\); expected .*\(9, 6890\)"), ("none.npy", "No such file")):
        config = tiny_config(data__regressor=str(tmp_path / name))
        with pytest.raises(DtoError, match=rf"data\.regressor .*{said}"):
            Learner(config, begin_network(config)[0], body, CPU)


def test_two_halves_of_a_batch_weigh_as_the_whole(body: BodyModel) -> None:
    """What `share_all_counts` is for: sums over shared counts do not depend on who has which images."""
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.4)], [(0.0, 4.0)]])
    right = perfect_predictions(batch, body, 4)
    wrong = moved(right, body, transl=right.transl + torch.rand_like(right.transl))
    whole = losses_of(wrong, batch.targets)
    matches = match_people(wrong, batch.targets)
    twice = compute_losses(wrong, batch.targets, matches, LossConfig(), share=lambda counts: 2 * counts)
    for name in ("confs", "j3ds", "depths_mt", "map_confs"):
        assert float(twice.terms[name]) * 2 == pytest.approx(float(whole.terms[name]), rel=1e-5), name


def test_empty_slots_of_denoising_cost_nothing_unless_as_published(body: BodyModel) -> None:
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.4)], [(0.0, 4.0)]])
    targets = batch.targets
    right = perfect_predictions(batch, body, 4)
    known = Known(targets.image, 2, targets.boxes, torch.zeros(3, 82), 1)
    confs = torch.full((1, 2, 4), 0.5)
    slots = dataclasses.replace(perfect_predictions(batch, body, 4), confs=confs)
    with_slots = dataclasses.replace(right, known=slots)
    matches = match_people(right, targets)
    ours, paper = (
        float(compute_losses(with_slots, targets, matches, config, known=known).terms["confs_dn"])
        for config in (LossConfig(), PAPER)
    )
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    assert ours == pytest.approx((3 * positive + 3 * negative) / 6)
    assert paper == pytest.approx((3 * positive + 5 * negative) / 8)


def test_boxes_apart_are_worse_than_boxes_that_touch() -> None:
    a = torch.tensor([0.0, 0, 1, 1])
    overlaps = [float(generalised_iou(a, torch.tensor(b))) for b in ([0.0, 0, 1, 1], [0.5, 0, 1.5, 1], [3.0, 0, 4, 1])]
    assert overlaps == pytest.approx([1, 1 / 3, -0.5], abs=1e-5)
