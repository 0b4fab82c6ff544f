"""MuPoTS-3D and Panoptic on small files in exactly their formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dto_pipeline.cli import main
from dto_pipeline.data.joint_truth import JointTruthError, read_mupots, read_panoptic
from dto_pipeline.evaluate.bodies import vertices_of
from dto_pipeline.evaluate.joint_evaluation import (
    OF_MUPOTS,
    OF_PANOPTIC,
    PELVIS_SHIFT,
    count_mupots,
    count_panoptic,
)
from dto_pipeline.models.body import BodyModel
from tests.evaluate.people import make_people

PLACES = [[(-0.5, 3.0), (0.6, 4.0)], [(0.2, 5.0)]]
CAMERA = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])


@pytest.fixture(scope="module")
def regressor(body: BodyModel) -> np.ndarray:
    """Spread over the body, one vertex each."""
    rows = np.zeros((17, body.num_vertices))
    rows[np.arange(17), np.linspace(0, body.num_vertices - 1, 17).astype(int)] = 1
    return rows


def joints_of(body: BodyModel, regressor: np.ndarray, x: float, z: float) -> np.ndarray:
    """(17, 3) Human3.6M's."""
    return regressor @ vertices_of(make_people([[(x, z)]]), body)[0]


def write_found(path: Path, names: list[str], shift: float = 0.0) -> None:
    people = make_people([[(x + shift, z) for x, z in crowd] for crowd in PLACES])
    arrays = {name: getattr(people, name) for name in ("pose", "betas", "transl", "intrinsics")}
    np.savez(path, image=np.array(names)[people.owner], **arrays)


def write_mupots(root: Path, body: BodyModel, regressor: np.ndarray) -> None:
    cells = np.empty((2, 2), dtype=object)
    for frame in range(2):
        for person in range(2):
            there = person < len(PLACES[frame])
            x, z = PLACES[frame][person if there else 0]
            joints = joints_of(body, regressor, x, z)[list(OF_MUPOTS)]
            seen = joints @ CAMERA.T
            cells[frame, person] = {
                "annot2": (seen[:, :2] / seen[:, 2:]).T,
                "annot3": joints.T * 1000,
                "univ_annot3": joints.T * 1000,
                "isValidFrame": np.array([[int(there)]]),
            }
    (root / "TS1").mkdir(parents=True)
    savemat(root / "TS1/annot.mat", {"annotations": cells})


def write_panoptic(root: Path, body: BodyModel, regressor: np.ndarray) -> None:
    """Joints in a world that is turned and moved; the middle of the hips lies 6 cm over the pelvis."""
    folder = root / "160422_haggling1"
    (folder / "hdPose3d_stage1_coco19").mkdir(parents=True)
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    camera = {"name": "00_16", "K": CAMERA.tolist(), "R": turn.tolist(), "t": [[10.0], [20.0], [-30.0]]}
    cameras = [camera | {"distCoef": [0.0] * 5}, camera | {"name": "00_30", "distCoef": [0.1, 0, 0, 0, 0]}]
    (folder / "calibration_160422_haggling1.json").write_text(json.dumps({"cameras": cameras}))
    for frame, crowd in enumerate(PLACES):
        bodies = []
        for number, (x, z) in enumerate(crowd):
            joints = joints_of(body, regressor, x, z)[list(OF_PANOPTIC)]
            joints[2, 1] -= PELVIS_SHIFT
            world = (joints * 100 - [10, 20, -30]) @ turn
            rows = np.concatenate([np.c_[world, np.ones(15)], np.zeros((4, 4))])
            bodies.append({"id": number, "joints19": rows.ravel().tolist()})
        path = folder / f"hdPose3d_stage1_coco19/body3DScene_{frame:08d}.json"
        path.write_text(json.dumps({"version": 0.7, "univTime": 1.0, "bodies": bodies}))


def measures(command: list[str], tmp_path: Path) -> dict[str, dict[str, float]]:
    assert main([*command, "--resamples", "0", "--body", "demo", "--json", str(tmp_path / "out.json")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())["measures"]
    return {column: {name: found["value"] for name, found in own.items()} for column, own in told.items()}


def test_mupots_is_read_from_its_files_and_the_truth_is_right(
    body: BodyModel, regressor: np.ndarray, tmp_path: Path
) -> None:
    write_mupots(tmp_path / "mupots", body, regressor)
    np.save(tmp_path / "h36m.npy", regressor)
    truth = read_mupots(tmp_path / "mupots")
    assert truth.images == ("TS1/img_000000.jpg", "TS1/img_000001.jpg")
    assert (truth.owner.tolist(), truth.unusable) == ([0, 0, 1], 1)
    write_found(tmp_path / "found.npz", list(truth.images))
    command = ["eval", "mupots", str(tmp_path / "found.npz"), str(tmp_path / "mupots")]
    found = measures([*command, "--regressor", str(tmp_path / "h36m.npy")], tmp_path)
    assert found["all"]["pck"] == found["all"]["pck_matched"] == found["TS1"]["recall"] == 100


def test_panoptic_is_read_from_its_files_and_the_truth_is_right(
    body: BodyModel, regressor: np.ndarray, tmp_path: Path
) -> None:
    write_panoptic(tmp_path / "panoptic", body, regressor)
    np.save(tmp_path / "h36m.npy", regressor)
    names = [f"160422_haggling1/hdImgs/00_16/00_16_{frame:08d}.jpg" for frame in range(2)]
    write_found(tmp_path / "found.npz", names, shift=0.1)
    command = ["eval", "panoptic", str(tmp_path / "found.npz"), str(tmp_path / "panoptic")]
    found = measures([*command, "--cameras", "00_16", "--regressor", str(tmp_path / "h36m.npy")], tmp_path)["all"]
    assert found["mpjpe"] == pytest.approx(0, abs=1e-3)
    assert found["mrpe"] == pytest.approx(100, abs=1e-2)
    assert found["recall"] == 100
    bent = read_panoptic(tmp_path / "panoptic", ["00_30"])
    straight = read_panoptic(tmp_path / "panoptic", ["00_16"])
    assert np.nanmax(np.abs(bent.places - straight.places)) > 0.1  # its lens
    assert np.isnan(straight.joints[:, 1]).all()  # a nose is no head top


def test_true_joints_in_another_unit_are_refused(body: BodyModel, regressor: np.ndarray, tmp_path: Path) -> None:
    write_mupots(tmp_path / "m", body, regressor / 1000)
    with pytest.raises(JointTruthError, match=r"its people are 0\.00\d+ m large; expected joints in millimetres"):
        read_mupots(tmp_path / "m")
    write_panoptic(tmp_path / "p", body, regressor * 10)
    with pytest.raises(JointTruthError, match=r"its people are \d\d\.?\d? m large; expected joints in centimetres"):
        read_panoptic(tmp_path / "p", ["00_16"])


def test_a_regressor_or_people_of_no_sense_are_refused_and_nobody_matched_is_exit_code_1(
    body: BodyModel, regressor: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mupots(tmp_path / "mupots", body, regressor)
    write_found(tmp_path / "found.npz", ["TS1/img_000000.jpg", "TS1/img_000001.jpg"])
    command = ["eval", "mupots", str(tmp_path / "found.npz"), str(tmp_path / "mupots"), "--body", "demo"]
    path = tmp_path / "h36m.npy"
    broken = regressor.copy()
    broken[3, 0] = np.nan
    for wrong in (broken, regressor * 9):
        np.save(path, wrong)
        assert main([*command, "--regressor", str(path)]) == 2
        assert "h36m.npy cannot be used: its rows do not all add up to 1" in capsys.readouterr().err
    np.save(path, regressor)
    write_found(tmp_path / "found.npz", ["TS1/img_000000.jpg", "TS1/img_000001.jpg"], shift=9)
    assert main([*command, "--regressor", str(path)]) == 1
    said = capsys.readouterr()
    assert "matched people -, AUC" in said.out
    assert "nobody of the truth was found" in said.err
    with np.load(tmp_path / "found.npz") as found:
        np.savez(tmp_path / "found.npz", **{**found, "transl": found["transl"] * 1000})
    assert main([*command, "--regressor", str(path)]) == 2
    assert "found.npz: none of its 3 people can be used" in capsys.readouterr().err


def test_bones_get_the_true_lengths_and_a_missed_person_costs_in_the_first_number_only() -> None:
    random = np.random.default_rng(0)
    truth = random.normal((0, 0, 4), 0.3, (2, 17, 3))
    places = np.stack([np.full((17, 2), 100.0), np.full((17, 2), 500.0)])
    larger = truth[:1, [14]] + 1.3 * (truth[:1] - truth[:1, [14]])
    sums = count_mupots(larger, places[:1] + 39, truth, places)
    assert (sums["matched"], sums["right"], sums["counted_matched"], sums["counted"]) == (1, 14, 14, 28)
    assert count_mupots(larger, places[:1] + 41, truth, places)["matched"] == 0


def test_a_prediction_may_serve_two_people_of_panoptic() -> None:
    random = np.random.default_rng(1)
    truth = random.normal(0, 0.3, (2, 15, 3))
    sums = count_panoptic(truth[:1], np.zeros((1, 15, 2)), truth, np.zeros((2, 15, 2)))
    assert sums["matched"] == sums["true"] == 2
    assert count_panoptic(truth[:0], np.zeros((0, 15, 2)), truth, np.zeros((2, 15, 2)))["matched"] == 0


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"{}"])
def test_files_of_another_kind_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "TS1").mkdir()
    (tmp_path / "TS1/annot.mat").write_bytes(content)
    with pytest.raises(JointTruthError, match=r"annot\.mat"):
        read_mupots(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/calibration_a.json").write_bytes(content)
    with pytest.raises(JointTruthError, match=r"calibration_a\.json"):
        read_panoptic(tmp_path, ["00_16"])
    with pytest.raises(JointTruthError, match="holds no TS"):
        read_mupots(tmp_path / "nowhere")
