"""Errors against a known truth, on crowds small enough to compute by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.evaluate.evaluation import EvaluationError
from dto_pipeline.evaluate.placements import (
    PLACEMENT_MEASURES,
    Placement,
    depth_relation,
    evaluate_synthetic,
    placement_sums,
)
from dto_pipeline.models.body import BodyModel
from tests.evaluate.people import make_people

PLACES = [[(-1.0, 4.0), (0.8, 5.0)], [(0.0, 6.0)]]
# image 0 holds three people, image 5 two; true z 2, 3, 5 and 4, 4.1
IMAGE = np.array([0, 0, 5, 0, 5])
TRUTH = Placement(z=np.array([2.0, 3.0, 4.0, 5.0, 4.1]), height=np.array([1.7, 1.0, 1.6, 1.8, 1.5]))
FOUND = Placement(z=np.array([2.5, 2.4, 4.0, 5.0, 4.5]), height=np.array([1.8, 1.0, 1.6, 1.5, 1.5]))


def placement_errors(
    found: Placement, truth: Placement, image: np.ndarray, selected: np.ndarray | None = None
) -> dict[str, float]:
    """The measures of all images together."""
    sums = placement_sums(found, truth, image, 6, selected)
    pooled = {name: values.sum() for name, values in sums.items()}
    return {**pooled, **{measure.key: float(measure.of(pooled)) for measure in PLACEMENT_MEASURES}}


def test_errors_of_five_people_are_those_computed_by_hand() -> None:
    errors = placement_errors(FOUND, TRUTH, IMAGE)
    assert (errors["persons"], errors["pairs"]) == (5, 4)
    assert errors["depth_error"] == pytest.approx((0.5 + 0.6 + 0 + 0 + 0.4) / 5)
    assert errors["relative_depth_error"] == pytest.approx(100 * (0.25 + 0.2 + 0 + 0 + 0.4 / 4.1) / 5)
    # pairs: (2, 3) now 0.1 apart instead of -1, (2, 5) 0.5 off, (3, 5) 0.6 off, (4, 4.1) now -0.5 instead of -0.1
    assert errors["pair_depth_error"] == pytest.approx((1.1 + 0.5 + 0.6 + 0.4) / 4)
    assert errors["ordinal"] == pytest.approx(50)  # the first pair became "same", the last one "nearer"
    assert errors["height_error"] == pytest.approx(0.4 / 5)


def test_only_selected_people_form_pairs() -> None:
    errors = placement_errors(FOUND, TRUTH, IMAGE, selected=np.array([True, False, True, True, False]))
    assert (errors["persons"], errors["pairs"]) == (3, 1)
    assert errors["pair_depth_error"] == pytest.approx(0.5)


def test_people_of_different_images_are_never_compared() -> None:
    errors = placement_errors(FOUND, TRUTH, np.arange(5))
    assert errors["pairs"] == 0
    assert np.isnan(errors["ordinal"])


def test_a_fifth_of_a_metre_is_no_longer_the_same_depth() -> None:
    assert depth_relation(np.array([0.19, 0.2, -0.19, -0.25])).tolist() == [0, 1, 0, -1]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(5)))
def test_the_order_of_people_does_not_matter(order: list[int]) -> None:
    shuffled = placement_errors(
        Placement(FOUND.z[order], FOUND.height[order]), Placement(TRUTH.z[order], TRUTH.height[order]), IMAGE[order]
    )
    assert shuffled == pytest.approx(placement_errors(FOUND, TRUTH, IMAGE))


def test_people_are_compared_by_their_label_row(body: BodyModel) -> None:
    truth = make_people(PLACES)
    after = make_people([[(-1.0, 4.5), (0.8, 5.0)], [(0.0, 6.0)]], status=np.array(["moved", "too_small", "moved"]))
    order = np.array([1, 0, 2])
    evaluation = evaluate_synthetic({"after": after.take(order)}, truth, body)
    assert evaluation.estimates["after"]["depth_error"].value == pytest.approx(0.5 / 3)
    assert evaluation.estimates["after"]["pair_depth_error"].value == pytest.approx(0.5)
    assert evaluation.estimates["after"]["mrpe"].value == pytest.approx(500 / 3, rel=1e-5)
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
    columns = evaluate_synthetic({"labels": labels}, truth, body).estimates
    assert columns["labels"]["depth_error"].value == pytest.approx(1 / 3)
    assert columns["labels, accepted images"]["depth_error"].value == 0


def test_the_truth_of_another_data_set_is_refused(body: BodyModel) -> None:
    truth = make_people(PLACES)
    other = dataclasses.replace(make_people(PLACES), row=np.array([2, 1, 0]))
    with pytest.raises(EvaluationError, match="label row"):
        evaluate_synthetic({"labels": other}, truth, body)
    nobody = dataclasses.replace(make_people(PLACES), row=np.array([-1, -1, -1]))
    with pytest.raises(EvaluationError, match="no person"):
        evaluate_synthetic({"labels": nobody}, truth, body)


def test_nobody_is_compared_with_a_truth_that_cannot_be_used(body: BodyModel) -> None:
    truth = make_people(PLACES)
    truth.transl[1, 2] = np.nan
    truth.pose[:] = np.nan  # of people of another body model no pose is known
    evaluation = evaluate_synthetic({"after": make_people(PLACES)}, truth, body)
    assert evaluation.estimates["after"]["depth_error"].value == 0
    assert (
        evaluation.counts["compared"],
        evaluation.counts["compared with nobody, as their truth cannot be used"],
    ) == (2, 1)
