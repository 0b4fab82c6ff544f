"""Losses against numbers computed by hand, and what must never change them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.config import LossConfig, MatchConfig, load_train_config
from dto_pipeline.train.losses import (
    Term,
    betas_loss,
    compute_losses,
    confidence_loss,
    fov_loss,
    relative_layer_loss,
    relative_metric_loss,
)
from dto_pipeline.train.matching import Matches, assign_tokens, generalised_iou, match_people
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.targets import build_targets
from tests.train.known_predictions import perfect_predictions, standing_batch

LOSS, MATCH = LossConfig(), MatchConfig()
NAN = float("nan")


def in_order(batch: TrainBatch) -> Matches:
    """Person p of every image is answered by query p."""
    image, person = batch.present.nonzero(as_tuple=True)
    return Matches(image, person, person, torch.ones_like(image, dtype=torch.bool))


def mean(term: Term) -> float:
    return float(term.total / term.count)


def relative(batch: TrainBatch, z: list[float], body: BodyModel, loss: LossConfig = LOSS) -> Term:
    targets, matches = build_targets(batch, body), in_order(batch)
    true_z = targets.transl[matches.image, matches.person][:, 2]
    has_body = torch.ones(len(z), dtype=torch.bool)
    return relative_metric_loss(torch.tensor(z), true_z, has_body, matches, targets, loss)


def test_right_predictions_cost_nothing(body: BodyModel) -> None:
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.4)], [(0.0, 4.0)]])
    total, losses = compute_losses(perfect_predictions(batch, body, 4), build_targets(batch, body), body, LOSS, MATCH)
    assert total.item() < 1e-3
    assert len(losses) == 10


def test_relative_metric_loss_is_the_logarithm_of_one_plus_the_error_between_two_people(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 2.0), (0.3, 2.5)]])
    assert mean(relative(batch, [2.0, 3.0], body)) == pytest.approx(math.log(1.5), abs=1e-6)


def test_relative_metric_loss_does_not_see_a_shift_of_everybody(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 2.0), (0.3, 2.5), (-0.3, 2.9)]])
    assert float(relative(batch, [5.0, 5.5, 5.9], body).total) == pytest.approx(0.0, abs=1e-6)


def test_relative_metric_loss_leaves_out_pairs_farther_apart_than_its_reach(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 2.0), (0.3, 3.5)]])
    term = relative(batch, [2.0, 2.0], body)
    assert float(term.total) == 0.0
    assert float(term.count) == 0.0


def test_relative_metric_loss_is_a_mean_per_image_first(body: BodyModel) -> None:
    # one pair that is 1 m wrong, and an image of three pairs all right: a mean over pairs would be log(2) / 4
    batch = standing_batch([[(0.0, 2.0), (0.3, 2.0)], [(0.0, 2.0), (0.3, 2.0), (-0.3, 2.0)]])
    assert mean(relative(batch, [2.0, 3.0, 4.0, 4.0, 4.0], body)) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_people_of_different_images_are_no_pair(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 2.0)], [(0.0, 2.0)]])
    assert float(relative(batch, [2.0, 9.0], body).count) == 0.0


def test_pairs_the_labels_are_unsure_of_count_less(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 2.0), (0.3, 2.0)]])
    covariance = torch.tensor([[[0.05, 0.01], [0.01, 0.06]]])  # variance of the difference: 0.09 m2
    unsure = dataclasses.replace(batch, z_covariance=covariance)
    assert mean(relative(unsure, [2.0, 3.0], body)) == pytest.approx(math.log(2) / 2, abs=1e-6)  # sigma 0.3 m
    flat = dataclasses.replace(LOSS, pair_sigma=0.0)
    assert mean(relative(unsure, [2.0, 3.0], body, flat)) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(("error", "expected"), [(0.2, 3 * 0.04), (-0.2, 0.04)])
def test_a_field_of_view_too_large_costs_three_times_as_much(body: BodyModel, error: float, expected: float) -> None:
    targets = build_targets(standing_batch([[(0.0, 3.0)], [(0.0, 3.0)]]), body)
    fov = targets.fov + torch.tensor([error, 0.0])
    assert mean(fov_loss(fov, targets, LOSS)) == pytest.approx(expected / 2, rel=1e-4)
    summed = dataclasses.replace(LOSS, sum_fov=True)
    assert mean(fov_loss(fov, targets, summed)) == pytest.approx(expected, rel=1e-4)


def test_an_image_without_a_camera_does_not_teach_the_field_of_view(body: BodyModel) -> None:
    batch = dataclasses.replace(standing_batch([[(0.0, 3.0)]]), has_camera=torch.tensor([False]))
    assert float(fov_loss(torch.tensor([2.0]), build_targets(batch, body), LOSS).count) == 0.0


def test_confidence_is_a_focal_loss_per_matched_person() -> None:
    # sigmoid(0) = 1/2: a person costs 0.25 (1/2)^2 log 2, nobody 0.75 (1/2)^2 log 2
    logits = torch.zeros(1, 3)
    matches = Matches(torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), torch.tensor([True]))
    assert mean(confidence_loss(logits, matches, LOSS)) == pytest.approx((0.25 + 2 * 0.75) / 4 * math.log(2))
    twice = dataclasses.replace(LOSS, confidence_over_queries=True)
    assert mean(confidence_loss(logits, matches, twice)) == pytest.approx((0.25 + 2 * 0.75) / 12 * math.log(2))


def test_betas_are_weighed_by_how_much_they_change_a_body() -> None:
    found = torch.zeros(1, 11)
    found[0, 0], found[0, 10] = 1.0, -0.1
    term = betas_loss(found, torch.zeros(1, 11), torch.tensor([True]), LOSS)
    assert mean(term) == pytest.approx((2.56 + 1.0) / 11, rel=1e-5)


def test_ordinal_layers_ask_for_order_between_and_nearness_within(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0), (0.3, 3.0), (-0.3, 3.0)]])
    batch = dataclasses.replace(batch, depth_layer=torch.tensor([[0, 0, 1]]))
    term = relative_layer_loss(torch.tensor([2.0, 2.5, 3.0]), in_order(batch), build_targets(batch, body))
    nearer = [math.log1p(math.exp(2.0 - 3.0)), math.log1p(math.exp(2.5 - 3.0))]
    assert mean(term) == pytest.approx((0.5 + sum(nearer)) / 3, rel=1e-5)


def test_generalised_iou_of_boxes_apart_is_negative() -> None:
    found = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    true = torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 0.0, 4.0, 1.0]])
    assert generalised_iou(found, true).tolist() == pytest.approx([0.5, -0.5])


def test_people_are_matched_to_the_queries_that_look_like_them(body: BodyModel) -> None:
    batch = standing_batch([[(-0.8, 3.0), (0.0, 3.0), (0.8, 3.0)]])
    right = perfect_predictions(batch, body, 5)
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = dataclasses.replace(
        right,
        **{
            name: getattr(right, name)[:, :, order]
            for name in ("logits", "centred_boxes", "rotations", "all_betas", "all_transl")
        },
    )
    matches = match_people(shuffled, build_targets(batch, body), body, MATCH, LOSS)
    assert order[matches.query].tolist() == matches.person.tolist()


def tokens_over(batch: TrainBatch, body: BodyModel, across: int) -> Predictions:
    """Predictions of across x across tokens."""
    people = perfect_predictions(batch, body, across**2)
    assert people.logits.shape[-1] == across**2
    return people


def test_tokens_on_the_middle_of_a_person_answer_for_the_nearest_of_them(body: BodyModel) -> None:
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.0), (0.5, 5.0)], []])
    boxes = torch.tensor([[10.0, 10, 30, 90], [50, 10, 90, 90], [50, 10, 90, 90]])
    batch = dataclasses.replace(batch, boxes=torch.stack([boxes, torch.full((3, 4), NAN)]))
    matches = assign_tokens(tokens_over(batch, body, 10), build_targets(batch, body))
    assert set(matches.image.tolist()) == {0}  # nobody in the other image
    assert set(matches.person.tolist()) == {0, 1}  # the third stands behind the second
    row, column = matches.query // 10, matches.query % 10  # centres at 5, 15, .. px
    first = matches.person == 0
    assert {*zip(row[first].tolist(), column[first].tolist(), strict=True)} == {
        (r, c) for r in range(3, 7) for c in (1, 2)
    }
    assert column[~first].unique().tolist() == [6, 7]
    assert matches.reports.sum() == 2  # one token each


def test_somebody_behind_keeps_the_token_at_their_centre(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0), (0.1, 5.0)]])
    batch = dataclasses.replace(batch, boxes=torch.tensor([[[10.0, 10, 90, 90], [50, 50, 80, 80]]]))
    matches = assign_tokens(tokens_over(batch, body, 10), build_targets(batch, body))
    behind = matches.person == 1
    assert matches.query[behind].tolist() == [66]
    assert matches.reports[behind].tolist() == [True]
    assert (~behind).sum() > 10


def test_tokens_of_one_person_are_no_pair(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0)]])
    targets = build_targets(batch, body)
    matches = assign_tokens(tokens_over(batch, body, 20), targets)
    assert len(matches.image) > 1
    z = torch.linspace(2.0, 4.0, len(matches.image))
    known = torch.ones_like(matches.reports)
    term = relative_metric_loss(z, torch.full_like(z, 3.0), known, matches, targets, LOSS)
    assert term.count == 0


def test_only_the_token_that_reports_somebody_is_to_be_sure(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0)]])
    matches = assign_tokens(tokens_over(batch, body, 20), build_targets(batch, body))
    logits = torch.full((1, 400), -20.0)
    logits[0, matches.query[matches.reports]] = 20.0
    term = confidence_loss(logits, matches, LOSS)
    assert term.count == 1
    assert mean(term) < 1e-6


def test_somebody_smaller_than_a_token_has_the_nearest(body: BodyModel) -> None:
    batch = standing_batch([[(0.0, 3.0)]])
    batch = dataclasses.replace(batch, boxes=torch.tensor([[[41.0, 41, 43, 44]]]))
    matches = assign_tokens(tokens_over(batch, body, 5), build_targets(batch, body))
    assert matches.query.tolist() == [2 * 5 + 2]


def test_people_known_in_the_picture_only_have_tokens_too(body: BodyModel) -> None:
    batch = standing_batch([[(-0.5, 3.0), (0.5, 3.0)]])
    boxes = torch.tensor([[[10.0, 10, 30, 90], [50, 10, 90, 90]]])
    batch = dataclasses.replace(batch, boxes=boxes, has_body=torch.tensor([[True, False]]))
    matches = assign_tokens(tokens_over(batch, body, 10), build_targets(batch, body))
    assert set(matches.person.tolist()) == {0, 1}


def test_what_tokens_propose_is_learnt_with_its_factor(body: BodyModel) -> None:
    batch = standing_batch([[(-0.8, 3.0), (0.0, 3.0), (0.8, 3.0)]])
    targets, answer = build_targets(batch, body), perfect_predictions(batch, body, 5)
    proposed = dataclasses.replace(answer, proposals=noisy(tokens_over(batch, body, 10)))
    alone, once, twice = (
        compute_losses(predictions, targets, body, dataclasses.replace(LOSS, proposals=factor), MATCH)[0].item()
        for predictions, factor in ((answer, 1.0), (proposed, 1.0), (proposed, 2.0))
    )
    assert once - alone > 0.1
    assert twice - once == pytest.approx(once - alone, rel=1e-4)


def noisy(predictions: Predictions) -> Predictions:
    """The same with errors, so that losses are not 0."""
    generator = torch.Generator().manual_seed(1)

    def shaken(values: torch.Tensor, size: float) -> torch.Tensor:
        return (values.detach() + size * torch.randn(values.shape, generator=generator)).requires_grad_()

    return dataclasses.replace(
        predictions,
        logits=shaken(predictions.logits * 0.1, 1.0),
        centred_boxes=shaken(predictions.centred_boxes, 0.02),
        all_betas=shaken(predictions.all_betas, 0.3),
        all_transl=shaken(predictions.all_transl, 0.1),
        fov=shaken(predictions.fov, 0.1),
    )


def permute_people(batch: TrainBatch, order: list[int]) -> TrainBatch:
    names = ("present", "has_body", "pose", "betas", "transl", "boxes", "keypoints", "depth_layer")
    moved: dict[str, Any] = {name: getattr(batch, name)[:, order] for name in names}
    return dataclasses.replace(batch, z_covariance=batch.z_covariance[:, order][:, :, order], **moved)


def test_the_order_of_people_does_not_matter(body: BodyModel) -> None:
    batch = standing_batch([[(-0.8, 3.0), (0.0, 3.3), (0.8, 3.6)]])
    batch = dataclasses.replace(batch, z_covariance=torch.diag(torch.tensor([0.01, 0.04, 0.09]))[None])
    predictions = noisy(perfect_predictions(batch, body, 5))
    other = permute_people(batch, [2, 0, 1])
    losses = [compute_losses(predictions, build_targets(b, body), body, LOSS, MATCH)[0].item() for b in (batch, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] > 0.1


def pad_people(batch: TrainBatch, extra: int) -> TrainBatch:
    """Padding of nonsense: nothing behind `present` = False may be read."""
    fills = {"present": False, "has_body": True, "pose": NAN, "betas": 7.0, "transl": -1.0}
    fills |= {"boxes": 5.0, "keypoints": 3.0, "depth_layer": 2}
    padded: dict[str, Any] = {}
    for name, fill in fills.items():
        values = getattr(batch, name)
        padded[name] = torch.cat([values, values.new_full((len(values), extra, *values.shape[2:]), fill)], dim=1)
    covariance = torch.nn.functional.pad(batch.z_covariance, (0, extra, 0, extra), value=1.0)
    return dataclasses.replace(batch, z_covariance=covariance, **padded)


def test_padding_changes_nothing(body: BodyModel) -> None:
    batch = standing_batch([[(-0.8, 3.0), (0.0, 3.3)], [(0.8, 3.6)]])
    predictions = noisy(perfect_predictions(batch, body, 5))
    padded = pad_people(batch, 3)
    both = [compute_losses(predictions, build_targets(b, body), body, LOSS, MATCH)[1] for b in (batch, padded)]
    losses, with_padding = ({name: float(value) for name, value in one.items()} for one in both)
    assert losses == pytest.approx(with_padding, rel=1e-6)


@pytest.mark.parametrize("preset", ["ours", "paper"])
def test_an_image_without_people_teaches_only_that_nobody_is_there(body: BodyModel, preset: str) -> None:
    batch = standing_batch([[(0.0, 3.0)]])
    batch = dataclasses.replace(batch, present=torch.zeros(1, 1, dtype=torch.bool))
    predictions = noisy(perfect_predictions(batch, body, 4))
    loss = load_train_config(None, [f"loss.preset={preset}"]).loss
    total, losses = compute_losses(predictions, build_targets(batch, body), body, loss, MATCH)
    total.backward()
    assert float(losses["confidence"]) > 0
    assert {name for name, value in losses.items() if float(value) > 0} == {"confidence", "fov"}


def test_people_known_in_the_picture_only_teach_boxes_and_joints_in_the_picture(body: BodyModel) -> None:
    batch = standing_batch([[(-0.4, 3.0), (0.4, 3.2)]])
    seen = build_targets(batch, body).image_joints
    keypoints = torch.nn.functional.pad(seen, (0, 0, 0, 2), value=NAN)
    flat = dataclasses.replace(
        batch,
        has_body=torch.zeros(1, 2, dtype=torch.bool),
        has_camera=torch.tensor([False]),
        pose=torch.full_like(batch.pose, NAN),
        betas=torch.full_like(batch.betas, NAN),
        transl=torch.full_like(batch.transl, NAN),
        keypoints=keypoints,
    )
    predictions = noisy(perfect_predictions(batch, body, 4))
    _, losses = compute_losses(predictions, build_targets(flat, body), body, LOSS, MATCH)
    taught = {name for name, value in losses.items() if float(value) > 0}
    assert taught == {"confidence", "boxes", "giou", "image_joints"}


BODY = load_body("demo")


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_missing_gradients_stay_finite(data: st.DataObject) -> None:
    people = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(lambda counts: max(counts) > 0))
    places = [[(data.draw(st.floats(-2, 2)), data.draw(st.floats(0.01, 6))) for _ in range(n)] for n in people]
    batch = standing_batch(places)
    shape = tuple(batch.present.shape)

    def coins(*more: int) -> torch.Tensor:
        seed = data.draw(st.integers(0, 2**16))
        return torch.rand(*shape, *more, generator=torch.Generator().manual_seed(seed)) < 0.5

    where: dict[str, Any] = {
        name: torch.where(coins(1), getattr(batch, name), NAN) for name in ("pose", "betas", "transl")
    }
    batch = dataclasses.replace(
        batch,
        **where,
        has_body=coins(),
        has_camera=coins()[:, 0],
        boxes=torch.where(coins(1), torch.tensor([10.0, 10.0, 40.0, 90.0]), NAN),
        keypoints=torch.where(coins(24, 1), 50.0, NAN).expand(*shape, 24, 2),
        z_covariance=torch.where(coins(shape[1]), 0.01, NAN),
        depth_layer=torch.where(coins(), 1, -1),
    )
    preset = data.draw(st.sampled_from(["ours", "paper"]))
    loss = load_train_config(None, [f"loss.preset={preset}"]).loss
    predictions = noisy(perfect_predictions(batch, BODY, 4))
    total, _ = compute_losses(predictions, build_targets(batch, BODY), BODY, loss, MATCH)
    total.backward()
    assert total.isfinite()
    for name in ("logits", "centred_boxes", "rotations", "all_betas", "all_transl", "fov"):
        gradient = getattr(predictions, name).grad
        assert gradient is None or gradient.isfinite().all(), name
