"""The pipeline on rendered crowds of bodies that nobody here made (`tests/anny_crowds`), and selecting its labels."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.api import torch_dataset
from dto_pipeline.cli import main
from dto_pipeline.commands.training_data import count_uncertain, open_label_sets
from dto_pipeline.config import load_config
from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.label_files import find_label_files, flatten_table
from dto_pipeline.data.labels import LabelsError, read_labels, read_placed
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.people import People, read_people
from dto_pipeline.evaluate.placements import evaluate_synthetic
from dto_pipeline.models.body import BodyModel, load_body
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.scene import PlacedScene
from dto_pipeline.train.config import DataConfig
from dto_pipeline.train.dataset import TrainingImages
from dto_pipeline.train.targets import build_labels
from dto_pipeline.view.report import LIMITS, try_limits

CROWDS = Path(__file__).parent / "anny_crowds"
SHORTEST_ADULT = 1.45  # [m] that an accepted image may say of somebody grown
NEARER = ("depth_error", "pair_depth_error", "height_error")  # measures of which less is better


def place(folder: Path, out: Path, mode: str) -> list[PlacedScene]:
    build_manifest(load_dataset(folder / "dataset.yaml", folder), out / "manifest.parquet", progress=False)
    config = load_config(None, ["run.workers=0", "body.model_path=demo", f"solver.mode={mode}"])
    summary = run_pipeline(out / "manifest.parquet", out / "run", config, progress=False)
    assert summary.exit_code == 0
    return [item for file in sorted((out / "run" / "labels").glob("*.parquet")) for item in read_placed(file)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[PlacedScene]]]:
    """Runs by name: both solvers, and joint on the same crowds when nobody's age is known."""
    ageless = tmp_path_factory.mktemp("ageless") / "crowds"
    shutil.copytree(CROWDS, ageless)
    sidecar = pq.read_table(ageless / "labels/sidecar.parquet")
    place_of = sidecar.schema.get_field_index("age_years")
    unknown = pa.nulls(sidecar.num_rows, sidecar.schema.field("age_years").type)
    pq.write_table(sidecar.set_column(place_of, "age_years", unknown), ageless / "labels/sidecar.parquet")
    found = {}
    for name, folder, mode in (
        ("paper", CROWDS, "paper"),
        ("joint", CROWDS, "joint"),
        ("joint without ages", ageless, "joint"),
    ):
        out = tmp_path_factory.mktemp("run")
        found[name] = (out / "run", place(folder, out, mode))
    return found


def measures(labels: People, truth: People, body: BodyModel) -> dict[str, dict[str, float]]:
    before = read_people(CROWDS / "labels/release.npz")
    columns = evaluate_synthetic({"labels": before, "run": labels}, truth, body).estimates
    return {name: {key: found.value for key, found in column.items()} for name, column in columns.items()}


@pytest.mark.parametrize("name", ["paper", "joint"])
def test_foreign_people_end_nearer_to_the_truth_than_their_labels(
    name: str, runs: dict[str, tuple[Path, list[PlacedScene]]], body: BodyModel
) -> None:
    found = measures(read_people(runs[name][0]), read_people(CROWDS), body)
    worth = 0.4 if name == "joint" else 0.7
    assert all(found["run"][key] < worth * found["labels"][key] for key in NEARER), found
    assert found["run"]["ordinal"] > found["labels"]["ordinal"] + 5


def test_every_foreign_person_has_a_row_and_a_status(runs: dict[str, tuple[Path, list[PlacedScene]]]) -> None:
    labels = read_people(CROWDS / "labels/release.npz")
    for folder, placed in runs.values():
        people = read_people(folder)
        assert sorted(people.row) == list(range(labels.num_people))
        assert (people.status != "").all()
        assert len(placed) == labels.num_images


@pytest.mark.parametrize("name", ["joint", "joint without ages"])
def test_nobody_grown_is_accepted_as_a_child(name: str, runs: dict[str, tuple[Path, list[PlacedScene]]]) -> None:
    with np.load(CROWDS / "truth.npz", allow_pickle=False) as truth:
        age, height = truth["age_years"], truth["height"]
    accepted = [item for item in runs[name][1] if item.is_accepted]
    row = np.concatenate([item.scene.source_row for item in accepted])
    found = np.concatenate([item.height_m for item in accepted])
    grown = (age[row] >= 17) & (height[row] > SHORTEST_ADULT)
    assert grown.sum() > 5
    assert found[grown].min() > SHORTEST_ADULT


def test_export_api_training_and_report_leave_the_same_images_and_people(
    runs: dict[str, tuple[Path, list[PlacedScene]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, placed = runs["joint"]
    accepted = [item for item in placed if item.is_accepted]
    most_error = float(np.median([item.expected_error for item in accepted if item.expected_error is not None]))
    most_sigma = float(np.median(np.concatenate([item.z_sigma_m for item in accepted])))
    error_of = {item.scene.image_id: np.float32(item.expected_error) for item in accepted}
    images = {item.scene.image_id for item in accepted if error_of[item.scene.image_id] <= most_error}
    people = [int((item.z_sigma_m <= most_sigma).sum()) for item in accepted if item.scene.image_id in images]
    assert 0 < len(images) < len(accepted)
    assert 0 < sum(people) < sum(item.scene.num_people for item in accepted if item.scene.image_id in images)

    limits = ["--max-error", repr(most_error), "--max-z-sigma", repr(most_sigma)]
    export = ["export", str(run), "--format", "parquet", "--accepted-only", "--quiet", "-o", str(tmp_path / "out")]
    assert main([*export, *limits]) == 0
    said = capsys.readouterr().out
    assert f"{len(accepted) - len(images)} images whose expected error is above" in said
    exported = read_people(tmp_path / "out")
    assert {f"synth-standard/{name}" for name in exported.images} == images
    assert exported.num_people == sum(people)

    dataset = torch_dataset(run, max_error=most_error, max_z_sigma=most_sigma)
    assert set(dataset.image_ids) == images
    usable = [int(dataset[index]["usable"].sum()) for index in range(len(dataset))]
    assert usable == people
    assert sum(dataset.left_out.values()) > len(accepted) - len(images)

    config = DataConfig(labels=(str(run),), max_error=most_error, max_z_sigma=most_sigma, input_size=56)
    sets = open_label_sets(config)
    counted = Counter(dataset.left_out)
    assert count_uncertain(sets, config) == [f"{run}: {n} {why} left out" for why, n in counted.items() if n]
    training = TrainingImages(sets, load_body("demo"), config)
    assert len(training) == len(images)
    (piece,) = training.pieces
    read = sets[0].read(piece)
    sizes = zip(read.images["width"].tolist(), read.images["height"].tolist(), strict=True)
    bodies = [build_labels(read, row, *size, config.limits) for row, size in enumerate(sizes)]
    assert sum(int(one.has_body.sum()) for one in bodies) == sum(people)
    assert sum(len(one.has_body) for one in bodies) == read.starts[-1]  # the boxes stay

    rows = try_limits(flatten_table(read_labels(*find_label_files(run))))
    assert len(rows) == len(LIMITS)
    for most, row in zip(LIMITS, rows, strict=True):
        few_people = sum(int((item.z_sigma_m <= most).sum()) for item in accepted)
        assert [row[1], row[3]] == [str(sum(error <= most for error in error_of.values())), str(few_people)]


def test_labels_that_tell_no_error_are_within_no_limit(
    runs: dict[str, tuple[Path, list[PlacedScene]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs["paper"][0]
    export = ["export", str(run), "--format", "parquet", "--quiet", "-o", str(tmp_path / "out"), "--max-error", "9"]
    assert main(export) == 2
    assert "14 images whose expected error is unknown" in capsys.readouterr().err
    with pytest.raises(LabelsError, match="expected more than 0"):
        torch_dataset(run, max_error=0.0)
    with pytest.raises(LabelsError, match="none of these labels has an expected error"):
        torch_dataset(run, max_error=9.0)
