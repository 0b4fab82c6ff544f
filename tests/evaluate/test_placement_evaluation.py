"""Labels against a synthetic truth: the same numbers as `placement_errors`, and rows that must belong together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dto_pipeline.evaluate.placements import (
    PLACEMENT_MEASURES,
    Placement,
    SyntheticError,
    evaluate_synthetic,
    placement_errors,
    placement_sums,
)
from dto_pipeline.models.body import BodyModel
from tests.evaluate.people import make_people

PLACES = [[(-1.0, 4.0), (0.8, 5.0)], [(0.0, 6.0)]]


def test_pooled_sums_give_the_errors_of_the_plain_definition() -> None:
    rng = np.random.default_rng(3)
    found, truth = (Placement(rng.uniform(3, 9, 40), rng.uniform(0.8, 1.9, 40)) for _ in range(2))
    image, selected = np.sort(rng.integers(0, 9, 40)), rng.random(40) < 0.7
    sums = placement_sums(found, truth, image, 9, selected)
    plain = placement_errors(found, truth, image, selected)
    for measure in PLACEMENT_MEASURES:
        factor = 100 if measure.unit == "%" else 1
        pooled = measure.of({name: values.sum() for name, values in sums.items()})
        assert float(pooled) == pytest.approx(factor * plain[measure.key]), measure.key


def test_people_are_compared_by_their_label_row(body: BodyModel) -> None:
    truth = make_people(PLACES)
    after = make_people([[(-1.0, 4.5), (0.8, 5.0)], [(0.0, 6.0)]], status=np.array(["moved", "too_small", "moved"]))
    order = np.array([1, 0, 2])
    evaluation = evaluate_synthetic({"after": after.take(order)}, truth, body)
    assert evaluation.columns["after"].estimates["depth_error"].value == pytest.approx(0.5 / 3)
    assert evaluation.columns["after"].estimates["pair_depth_error"].value == pytest.approx(0.5)
    assert evaluation.columns["after"].estimates["mrpe"].value == pytest.approx(500 / 3, rel=1e-5)
    assert evaluation.counts["moved"] == 2


def test_missed_extra_and_unusable_people_are_counted(body: BodyModel) -> None:
    truth = make_people(PLACES)
    labels = make_people([[(-1.0, 4.0), (0.8, 5.0)], [(0.0, 6.0)]], row=np.array([0, -1, 2]))
    labels.transl[2, 0] = np.inf
    counts = evaluate_synthetic({"labels": labels}, truth, body).counts
    assert counts["compared"] == 1
    assert counts["missed (no label row)"] == 1
    assert counts["extra (a label row the truth does not have)"] == 1
    assert counts["labels that cannot be used"] == 1


def test_accepted_images_get_columns_of_their_own(body: BodyModel) -> None:
    truth = make_people(PLACES)
    labels = make_people([[(-1.0, 4.0), (0.8, 5.0)], [(0.0, 7.0)]], accepted=np.array([True, False]))
    columns = evaluate_synthetic({"labels": labels}, truth, body).columns
    assert columns["labels"].estimates["depth_error"].value == pytest.approx(1 / 3)
    assert columns["labels, accepted images"].estimates["depth_error"].value == 0


def test_the_truth_of_another_data_set_is_refused(body: BodyModel) -> None:
    truth = make_people(PLACES)
    other = dataclasses.replace(make_people(PLACES), row=np.array([2, 1, 0]))
    with pytest.raises(SyntheticError, match="label row"):
        evaluate_synthetic({"labels": other}, truth, body)
    nobody = dataclasses.replace(make_people(PLACES), row=np.array([-1, -1, -1]))
    with pytest.raises(SyntheticError, match="no person"):
        evaluate_synthetic({"labels": nobody}, truth, body)
