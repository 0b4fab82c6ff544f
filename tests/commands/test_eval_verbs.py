"""`dto synth` and `dto eval` end to end: from made data over a run to numbers, and one message for what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline.cli import main
from dto_pipeline.config import PipelineConfig
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.people import People, read_people
from dto_pipeline.lab.difficulty import choose_difficulty
from dto_pipeline.lab.known_scenes import SynthScene
from dto_pipeline.lab.solver_outcomes import place_all
from dto_pipeline.models.body import BodyModel

IMAGES = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small benchmark in `data`, its manifest, and a run on it."""
    root = tmp_path_factory.mktemp("synth")
    data, manifest = root / "data", root / "manifest.parquet"
    assert main(["synth", "-o", str(data), "--images", str(IMAGES), "--seed", "23", "--quiet"]) == 0
    build = ["manifest", "build", str(data / "dataset.yaml"), "--data-root", str(data), "-o", str(manifest)]
    assert main([*build, "--quiet"]) == 0
    assert main(["run", str(manifest), "-o", str(root / "run"), "--set", "run.workers=0"]) == 0
    return root


def evaluate(made: Path, *words: str) -> dict:
    assert main(["eval", *words, "--body", "demo", "--resamples", "20", "--json", str(made / "eval.json")]) == 0
    return json.loads((made / "eval.json").read_text())


def test_a_run_on_synthetic_data_is_measured_before_and_after(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made / "rows.csv"
    found = evaluate(made, "synthetic", str(made / "run"), "--truth", str(made / "data"), "--csv", str(rows))
    before, after = (found["measures"][name]["height_error"]["value"] for name in ("before", "after"))
    assert after < before
    assert found["counts"]["images in the labels"] == IMAGES
    assert found["counts"]["compared"] == found["counts"]["people in the truth"]
    assert len(rows.read_text().splitlines()) == 1 + IMAGES
    assert "absolute z error [m]" in capsys.readouterr().out


def test_a_run_on_the_files_places_people_where_the_benchmark_in_memory_does(made: Path, body: BodyModel) -> None:
    known = [SynthScene(23, number, body, choose_difficulty("standard")).known for number in range(IMAGES)]
    outcome = place_all(known, PipelineConfig(), "paper")
    people = read_people(find_label_files(made / "run/labels"))
    assert np.array_equal(people.transl, np.concatenate([item.transl for item in outcome.placed]))


def test_people_who_are_elsewhere_than_all_of_the_truth_are_no_result(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = made / "data/truth.npz"
    with np.load(truth, allow_pickle=False) as arrays:
        np.savez(tmp_path / "aside.npz", **{**arrays, "transl": arrays["transl"] + [60.0, 0, 0]})
    assert main(["eval", "meshes", str(truth), str(truth), "--body", "demo"]) == 0
    assert main(["eval", "meshes", str(tmp_path / "aside.npz"), str(truth), "--body", "demo"]) == 1
    assert "nobody of the truth was found among the people that were measured" in capsys.readouterr().err


def test_labels_as_published_are_measured_like_the_run_s_input(made: Path) -> None:
    truth = str(made / "data")
    alone = evaluate(made, "synthetic", str(made / "data/labels/release.npz"), "--truth", truth)["measures"]["labels"]
    before = evaluate(made, "synthetic", str(made / "run"), "--truth", truth)["measures"]["before"]
    assert alone["depth_error"] == pytest.approx(before["depth_error"])


def test_a_run_that_grows_meanwhile_is_measured_as_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = next((made / "run/labels").glob("*.parquet"))
    (tmp_path / "labels").mkdir()
    shutil.copy(label, tmp_path / "labels/0.parquet")

    def read_and_grow(*given: Any, **options: Any) -> People:
        people = read_people(*given, **options)
        shutil.copy(label, tmp_path / "labels/1.parquet")
        return people

    monkeypatch.setattr("dto_pipeline.data.people.read_people", read_and_grow)
    found = evaluate(made, "synthetic", str(tmp_path / "labels"), "--truth", str(made / "data"))
    assert found["title"] == f"{tmp_path}/labels against {made}/data"
    assert found["counts"]["compared"] == found["counts"]["people in the truth"]


@pytest.mark.parametrize("kind", ["parquet", "ma-hmr", "camerahmr"])
def test_exports_are_measured_as_the_run_they_come_from(made: Path, kind: str) -> None:
    out = made / f"export-{kind}"
    assert main(["export", str(made / "run"), "--format", kind, "-o", str(out), "--all", "--quiet"]) == 0
    place = next(iter(sorted(out.rglob("*.npz"))), out)
    expected = evaluate(made, "meshes", str(made / "run"), str(made / "data"))
    found = evaluate(made, "meshes", str(place), str(made / "data"))
    for key, value in expected["measures"]["all people"].items():
        assert found["measures"]["all people"][key] == pytest.approx(value, rel=1e-4, abs=1e-4), key


def test_meshes_against_themselves_are_right(made: Path) -> None:
    truth = str(made / "data")
    found = evaluate(made, "meshes", truth, truth, "--match", "rows")
    assert found["measures"]["all people"]["mpjpe"]["value"] == pytest.approx(0.0, abs=1e-3)
    assert found["counts"]["missed"] == found["counts"]["extra"] == 0


def test_the_order_of_predictions_says_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(made / "data/truth.npz") as truth:
        people = {name: truth[name][::-1] for name in ("pose", "betas", "transl", "intrinsics")}
        np.savez(tmp_path / "found.npz", image=truth["image_name"][::-1], **people)
    found, truth_folder = str(tmp_path / "found.npz"), str(made / "data")
    for sides in ([found, truth_folder], [truth_folder, found]):
        assert main(["eval", "meshes", *sides, "--match", "rows", "--body", "demo"]) == 2
        assert "found.npz holds predictions, which name no label rows" in capsys.readouterr().err
    assert evaluate(made, "meshes", found, truth_folder)["counts"]["missed"] == 0
    placed = evaluate(made, "synthetic", found, "--truth", truth_folder)
    assert placed["counts"]["missed (no label row)"] == 0
    assert placed["counts"]["compared"] == len(people["transl"])
    assert placed["measures"]["labels"]["depth_error"]["value"] == 0
    assert "were matched by joints and boxes in the image" in " ".join(placed["notes"])


def write_annotations(made: Path, folder: Path) -> Path:
    """The synthetic people as RelativeHuman annotates: layers by order of true z, keypoints from the label file."""
    with np.load(made / "data/labels/release.npz", allow_pickle=False) as labels:
        names, keypoints = labels["imgname"], labels["gtkps"]
    with np.load(made / "data/truth.npz", allow_pickle=False) as truth:
        z = truth["transl"][:, 2]
    openpose = [5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11, 38, 37]  # shoulders ... ankles, head top, neck
    annots: dict[str, list] = {}
    for row, name in enumerate(names):
        layer = int((z[names == name] < z[row]).sum())
        person = {"kp2d": keypoints[row][openpose], "depth_id": layer, "age": 0, "gender": -1, "bbox": [0, 0, 9, 9]}
        annots.setdefault(str(name).rpartition("/")[2], []).append(person)
    annots["nobody.jpg"] = [{"kp2d": None, "depth_id": -1, "age": "unclear"}]
    np.savez(folder / "test_annots.npz", annots=np.array(annots, dtype=object))
    return folder


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_relative_human_takes_labels_of_our_schema(
    made: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_annotations(made, tmp_path)
    found = evaluate(made, "rh", str(made / "run"), "--annotations", str(folder), "--mode", mode)
    measures = found["measures"][mode]
    assert measures["pcdr_all"]["value"] > 50
    assert measures["mpckh"]["value"] > 80
    assert found["counts"]["images without a prediction"] == 1
    assert found["counts"]["people annotated without keypoints (cannot be found)"] == 1
    out = capsys.readouterr().out
    assert "nobody.jpg, person 0: age" in out
    assert "recognised by the last 1 part" in out


def test_every_action_has_help_and_corrections_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("rh", "synthetic", "meshes", "benchmark"):
        with pytest.raises(SystemExit) as stop:
            main(["eval", action, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "usage: dto eval" in text
        if action == "rh":
            assert "(index, pckh, box, rank, budget, detection)" in " ".join(text.split())


def test_difficulties_and_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth", "--list"]) == 0
    out = capsys.readouterr().out
    assert "depth-noise" in out
    assert "person_error=0.02" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["synth"], "name a folder with -o"),
        (["synth", "-o", "x", "--difficulty", "extreme"], "'extreme'; choose from"),
        (["synth", "-o", "x", "--set", "speed=1"], "unknown key difficulty.speed"),
        (["eval", "meshes", "nowhere", "nowhere", "--body", "demo"], "nowhere does not exist"),
        (["eval", "synthetic", "nowhere.npz", "--truth", "nowhere", "--body", "demo"], "nowhere.npz does not exist"),
        (["eval", "rh", "x.npz", "--annotations", "x_annots.npz", "--body", "demo"], "x_annots.npz: No such file"),
        (["eval", "benchmark", "--seed", "1"], "seed 1"),
        (["eval", "benchmark", "--difficulty", "extreme"], "'extreme'; choose from"),
    ],
)
def test_what_cannot_be_measured_is_one_message_and_exit_code_two(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_broken_files_cost_one_message(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = str(made / "data")
    label = next((made / "run/labels").glob("*.parquet"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(label.read_bytes()[:-200])
    assert main(["eval", "meshes", str(broken), truth, "--body", "demo"]) == 2
    assert "broken.parquet" in capsys.readouterr().err
    np.savez(tmp_path / "train_annots.npz", annots=np.zeros(3))
    assert main(["eval", "rh", str(label), "--annotations", str(tmp_path), "--split", "train", "--body", "demo"]) == 2
    assert "expected one dict" in capsys.readouterr().err
    assert main(["eval", "rh", str(label), "--annotations", str(tmp_path), "--body", "bodies"]) == 2
    assert capsys.readouterr().err
