"""Found bodies against true bodies: everybody is counted, and nothing depends on an order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dto_pipeline.evaluate.evaluation import Evaluation, EvaluationError
from dto_pipeline.evaluate.mesh_evaluation import Bodies, evaluate_meshes
from dto_pipeline.models.body import BodyModel
from tests.evaluate.people import FOCAL, SIZE, make_people

PLACES = [[(-1.0, 4.0), (0.8, 5.0)], [(0.0, 6.0)]]


def value(evaluation: Evaluation, key: str) -> float:
    return evaluation.estimates["all people"][key].value


def test_identical_people_have_no_error(body: BodyModel) -> None:
    truth = make_people(PLACES)
    evaluation = evaluate_meshes(truth, truth, Bodies(body, body))
    for key in ("mpjpe", "pa_mpjpe", "mve", "pa_mve", "absolute_mpjpe", "root_z_error", "pair_depth_error", "nmjpe"):
        assert value(evaluation, key) == pytest.approx(0.0, abs=1e-3), key
    for key in ("precision", "recall", "f1", "ordinal"):
        assert value(evaluation, key) == 100.0
    assert value(evaluation, "fov_error") == 0.0


def test_a_person_too_far_is_wrong_absolutely_and_in_pairs_only(body: BodyModel) -> None:
    truth = make_people(PLACES)
    found = make_people([[(-1.0 * 1.1, 4.4), (0.8, 5.0)], [(0.0, 6.0)]])
    evaluation = evaluate_meshes(found, truth, Bodies(body, body))
    assert value(evaluation, "mpjpe") == pytest.approx(0.0, abs=1e-3)
    assert value(evaluation, "root_z_error") == pytest.approx(0.4 / 3, abs=1e-5)
    assert value(evaluation, "absolute_mpjpe") == pytest.approx(1000 * np.hypot(0.1, 0.4) / 3, rel=1e-4)
    assert value(evaluation, "pair_depth_error") == pytest.approx(0.4, abs=1e-5)  # one pair


def test_one_missed_and_one_made_up_person_cost_f1_and_the_normalised_error(body: BodyModel) -> None:
    truth = make_people(PLACES)
    found = make_people([[(-1.0, 4.0), (3.4, 5.0), (-5.0, 7.0)], []])
    found.betas[0, 0] = 2.0  # another body, so that MPJPE is not 0
    evaluation = evaluate_meshes(found, truth, Bodies(body, body))
    assert evaluation.counts["missed"] == 2
    assert evaluation.counts["extra"] == 2
    assert evaluation.counts["images without any found person"] == 1
    f1 = 2 * 1 / (3 + 3)
    assert value(evaluation, "f1") == pytest.approx(100 * f1)
    assert value(evaluation, "mpjpe") > 1
    assert value(evaluation, "nmjpe") == pytest.approx(value(evaluation, "mpjpe") / f1)
    assert value(evaluation, "nmve") == pytest.approx(value(evaluation, "mve") / f1)


def test_the_order_of_people_and_images_changes_nothing(body: BodyModel) -> None:
    truth = make_people(PLACES)
    found = make_people([[(-1.0, 4.2), (0.8, 5.1)], [(0.1, 6.0)]])
    shuffled = dataclasses.replace(make_people([[(0.1, 6.0)], [(0.8, 5.1), (-1.0, 4.2)]]), images=truth.images[::-1])
    first, second = (evaluate_meshes(people, truth, Bodies(body, body)) for people in (found, shuffled))
    for key, estimate in first.estimates["all people"].items():
        assert value(second, key) == pytest.approx(estimate.value), key


def test_people_that_cannot_be_used_are_extra_or_left_out_but_counted(body: BodyModel) -> None:
    truth, found = make_people(PLACES), make_people(PLACES)
    found.pose[0, 3] = np.nan
    truth.transl[2, 2] = -1.0
    evaluation = evaluate_meshes(found, truth, Bodies(body, body))
    assert evaluation.counts["people of the truth that cannot be used (left out)"] == 1
    assert evaluation.counts["of the extra: cannot be used (not finite, or behind the camera)"] == 1
    assert (evaluation.counts["matched"], evaluation.counts["missed"], evaluation.counts["extra"]) == (1, 1, 2)
    assert value(evaluation, "mpjpe") == pytest.approx(0.0, abs=1e-3)


def test_images_the_truth_does_not_have_are_left_out_and_counted(body: BodyModel) -> None:
    truth = make_people(PLACES[:1])
    evaluation = evaluate_meshes(make_people(PLACES), truth, Bodies(body, body))
    assert evaluation.counts["images found that are not in the truth (left out)"] == 1
    assert evaluation.counts["people of images not in the truth (left out)"] == 1
    assert value(evaluation, "precision") == 100.0


def test_label_rows_match_people_wherever_they_stand(body: BodyModel) -> None:
    truth = make_people(PLACES)
    swapped = make_people([[(0.8, 5.0), (-1.0, 4.0)], [(0.0, 6.0)]])
    assert value(evaluate_meshes(swapped, truth, Bodies(body, body), by_row=True), "root_z_error") == pytest.approx(
        2 / 3, abs=1e-5
    )
    assert value(evaluate_meshes(swapped, truth, Bodies(body, body)), "root_z_error") == pytest.approx(0, abs=1e-5)


def test_the_field_of_view_error_is_that_of_the_focal_lengths(body: BodyModel) -> None:
    truth, found = make_people(PLACES), make_people(PLACES, focal=2 * FOCAL)
    angles = [np.degrees(2 * np.arctan(SIZE[0] / 2 / focal)) for focal in (FOCAL, 2 * FOCAL)]
    found = dataclasses.replace(found, transl=found.transl * [1, 1, 2])
    evaluation = evaluate_meshes(found, truth, Bodies(body, body))
    assert value(evaluation, "fov_error") == pytest.approx(angles[0] - angles[1])


def test_a_camera_only_the_truth_knows_is_used_and_no_field_of_view_is_measured(body: BodyModel) -> None:
    truth, found = make_people(PLACES), make_people(PLACES)
    found.intrinsics[:] = np.nan
    evaluation = evaluate_meshes(found, truth, Bodies(body, body))
    assert evaluation.counts["matched"] == 3
    assert np.isnan(value(evaluation, "fov_error"))


def test_a_truth_without_camera_is_refused(body: BodyModel) -> None:
    truth = make_people(PLACES)
    truth.intrinsics[:] = np.nan
    with pytest.raises(EvaluationError, match=r"camera of image 0\.jpg"):
        evaluate_meshes(make_people(PLACES), truth, Bodies(body, body))
    truth.transl[:, 2] = -1
    with pytest.raises(EvaluationError, match="made up has no person that can be used"):
        evaluate_meshes(truth, truth, Bodies(body, body))


def test_the_report_has_a_row_per_image_and_no_nan_in_json(body: BodyModel) -> None:
    truth = make_people(PLACES)
    evaluation = evaluate_meshes(make_people([PLACES[0], []]), truth, Bodies(body, body))
    head, *rows = evaluation.as_csv().splitlines()
    assert [row.split(",")[0] for row in rows] == ["0.jpg", "1.jpg"]
    assert rows[1].split(",")[head.split(",").index("recall")] == "0"
    assert rows[1].split(",")[head.split(",").index("mpjpe")] == ""
    assert evaluation.to_json()["measures"]["all people"]["mpjpe"]["value"] == pytest.approx(0, abs=1e-3)
    nobody = evaluate_meshes(make_people([[], []]), truth, Bodies(body, body))
    assert nobody.to_json()["measures"]["all people"]["mpjpe"]["value"] is None
    assert "MPJPE [mm]" in nobody.as_table()


def test_people_of_no_label_row_match_nobody_by_row(body: BodyModel) -> None:
    truth = make_people(PLACES)
    found = make_people(PLACES, row=np.array([-1, 1, -1]))
    counts = evaluate_meshes(found, truth, Bodies(body, body), by_row=True).counts
    assert (counts["matched"], counts["missed"], counts["extra"]) == (1, 2, 2)
