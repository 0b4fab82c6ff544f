"""RelativeHuman from bodies: the recorded numbers come out, and intervals do not change them."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.data.people import People
from dto_pipeline.data.sources.relative_human import Annotation
from dto_pipeline.evaluate.evaluation import EvaluationError
from dto_pipeline.evaluate.rh_evaluation import MEASURES, MODES, evaluate_rh
from dto_pipeline.models.body import BodyModel

Recorded = tuple[People, dict[str, list[Annotation]], dict]


@pytest.fixture(scope="module")
def regressor() -> np.ndarray:
    path = files("dto_pipeline.assets") / "J_regressor_extra.npy"
    return np.load(str(path), allow_pickle=False)


@pytest.fixture
def recorded(golden_folder: Path) -> Recorded:
    raw = json.loads((golden_folder / "rh_metric/case_04.json").read_text())
    with np.load(golden_folder / "rh_metric/case_04_bodies.npz", allow_pickle=False) as archive:
        bodies = {name: archive[name] for name in archive.files}
    annotations = {
        image["name"]: [
            Annotation(None if p["kp2d"] is None else np.array(p["kp2d"], np.float32), p["depth_id"], p["age"])
            for p in image["gt"]
        ]
        for image in raw["images"]
    }
    used = np.unique(bodies["image_index"])
    count = len(bodies["pose"])
    people = People(
        source="recorded",
        images=np.array([raw["images"][i]["name"] for i in used], dtype=object),
        owner=np.searchsorted(used, bodies["image_index"]),
        row=np.arange(count),
        pose=bodies["pose"].astype(np.float32),
        betas=np.pad(bodies["betas"], ((0, 0), (0, 11 - bodies["betas"].shape[1]))).astype(np.float32),
        transl=bodies["trans"].astype(np.float32),
        intrinsics=bodies["K"].astype(np.float64),
        size=np.full((len(used), 2), np.nan),
        accepted=np.ones(len(used), bool),
        status=np.full(count, "", dtype=object),
    )
    return people, annotations, raw["expected"]


def test_recorded_numbers_come_out_in_mode_reference(
    recorded: Recorded, body: BodyModel, regressor: np.ndarray
) -> None:
    people, annotations, expected = recorded
    evaluation = evaluate_rh(people, annotations, body, regressor, "reference")
    found = evaluation.estimates["reference"]
    for key in ("pcdr_all", "pcdr_adult", "pcdr_teen", "pcdr_kid", "mpckh"):
        assert found[key].value / 100 == pytest.approx(expected[key], abs=1e-6), key
    for key in ("precision", "recall", "f1"):
        assert found[key].value / 100 == pytest.approx(expected[key], abs=0.00501), key
    assert evaluation.counts["missed"] == expected["missed"]
    assert evaluation.counts["extra"] == expected["false_positives"]
    assert evaluation.counts["images without a prediction"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_everybody_is_counted_once(recorded: Recorded, body: BodyModel, regressor: np.ndarray, mode: str) -> None:
    people, annotations, _ = recorded
    counts = evaluate_rh(people, annotations, body, regressor, mode).counts
    assert counts["matched"] + counts["extra"] == counts["people predicted"] == people.num_people
    assert counts["matched"] + counts["missed"] == counts["people annotated"]


def test_a_broken_prediction_is_extra_and_its_person_missed(
    recorded: Recorded, body: BodyModel, regressor: np.ndarray
) -> None:
    people, annotations, _ = recorded
    before = evaluate_rh(people, annotations, body, regressor, "corrected").counts
    people.pose[0, 0] = np.nan
    after = evaluate_rh(people, annotations, body, regressor, "corrected").counts
    assert after["people predicted that cannot be used"] == 1
    assert after["people predicted"] == before["people predicted"]
    assert after["matched"] == before["matched"] - 1


def test_predictions_without_a_camera_and_unknown_modes_are_refused(
    recorded: Recorded, body: BodyModel, regressor: np.ndarray
) -> None:
    people, annotations, _ = recorded
    with pytest.raises(EvaluationError, match="mode is 'best'"):
        evaluate_rh(people, annotations, body, regressor, "best")
    people.intrinsics[0, 0, 2] = np.nan
    with pytest.raises(EvaluationError, match="camera"):
        evaluate_rh(people, annotations, body, regressor, "corrected")


def test_measures_of_one_image_are_measures_of_the_file_with_that_image(
    recorded: Recorded, body: BodyModel, regressor: np.ndarray
) -> None:
    people, annotations, _ = recorded
    rows = evaluate_rh(people, annotations, body, regressor, "corrected").as_csv().splitlines()
    name = str(people.images[0])
    alone = evaluate_rh(people, {name: annotations[name]}, body, regressor, "corrected")
    cells = dict(zip(rows[0].split(","), rows[1 + list(annotations).index(name)].split(","), strict=True))
    for measure in MEASURES:
        expected = alone.estimates["corrected"][measure.key].value
        assert cells[measure.key] == ("" if np.isnan(expected) else f"{expected:.9g}")


def test_annotations_in_which_nobody_can_be_found_are_refused(
    recorded: Recorded, body: BodyModel, regressor: np.ndarray
) -> None:
    people, annotations, _ = recorded
    unseen = {name: [Annotation(None, one.depth_id, one.age) for one in crowd] for name, crowd in annotations.items()}
    with pytest.raises(EvaluationError, match="no annotated person has a visible joint"):
        evaluate_rh(people, unseen, body, regressor, "corrected")
