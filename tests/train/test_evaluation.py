"""Measures of held-out images on predictions made by hand, and their pictures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.config import AugmentConfig, DataConfig
from dto_pipeline.train.dataset import TrainBatch, blank_sample, collate_samples
from dto_pipeline.train.learner import MEASURES, evaluate
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.targets import Rules
from tests.train.known_predictions import perfect_predictions
from tests.train.small_crowds import standing_batch


def measure(batch: TrainBatch, predictions: Predictions, body: BodyModel) -> dict[str, float]:
    return evaluate(lambda _: predictions, [batch], body)


@pytest.fixture
def batch() -> TrainBatch:
    return standing_batch([[(-0.5, 3.0), (0.5, 3.4)], [(0.0, 4.0)]])


def test_right_predictions_have_no_errors(batch: TrainBatch, body: BodyModel) -> None:
    found = measure(batch, perfect_predictions(batch, body, 5), body)
    assert (found["images"], found["persons"], found["pairs"]) == (2, 3, 1)
    assert found["recall"] == found["precision"] == found["ordinal"] == 1.0
    for name in set(MEASURES) - {"recall", "precision", "ordinal"}:
        assert found[name] == pytest.approx(0.0, abs=1e-4), name


def test_a_shift_of_everybody_is_an_error_of_places_but_not_between_people(batch: TrainBatch, body: BodyModel) -> None:
    right = perfect_predictions(batch, body, 5)
    shifted = dataclasses.replace(right, transl=right.transl + torch.tensor([0.0, 0.0, 0.5]))
    found = measure(batch, shifted, body)
    assert found["depth_error"] == pytest.approx(0.5, abs=1e-5)
    assert found["pair_depth_error"] == pytest.approx(0.0, abs=1e-5)


def test_somebody_the_network_is_not_sure_of_is_measured_but_not_recalled(batch: TrainBatch, body: BodyModel) -> None:
    right = perfect_predictions(batch, body, 5)
    confs = right.confs.clone()
    confs[0, 0, 0] = 0.05
    confs[0, 1, 3] = 0.95  # sure of nobody
    found = measure(batch, dataclasses.replace(right, confs=confs), body)
    assert found["persons"] == 3
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(2 / 3)


def test_images_without_anybody_have_no_measures_but_break_nothing(body: BodyModel) -> None:
    empty = standing_batch([[], []])
    found = measure(empty, perfect_predictions(empty, body, 5), body)
    assert found["persons"] == 0
    assert found["pair_depth_error"] != found["pair_depth_error"]  # NaN


def test_an_image_that_could_not_be_read_is_counted_and_its_black_stand_in_is_not(
    batch: TrainBatch, body: BodyModel
) -> None:
    right = perfect_predictions(batch, body, 5)
    rules = Rules(body, DataConfig(input_size=112), AugmentConfig())
    torn = ["x/torn.jpg: torn", "x/none.jpg: missing"]
    black = collate_samples([*torn, blank_sample(rules)])

    def predict(asked: TrainBatch) -> Predictions:
        found = perfect_predictions(asked, body, 5)
        return right if len(asked.images) == 2 else dataclasses.replace(found, confs=torch.ones_like(found.confs))

    found = evaluate(predict, [batch, black], body)
    alone = evaluate(predict, [black], body)
    assert (found["images"], found["skipped_images"], found["persons"]) == (2, 2, 3)
    assert found["precision"] == 1.0
    assert alone == {"images": 0, "skipped_images": 2}


def test_pairs_are_within_an_image_also_where_images_come_in_several_batches(
    batch: TrainBatch, body: BodyModel
) -> None:
    found = evaluate(lambda asked: perfect_predictions(asked, body, 5), [batch, batch], body)
    assert (found["images"], found["persons"], found["pairs"]) == (4, 6, 2)
