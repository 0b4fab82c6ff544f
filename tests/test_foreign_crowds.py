"""The pipeline on rendered crowds of bodies that nobody here made (`tests/anny_crowds`): what must hold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.config import load_config
from dto_pipeline.data.dataset import load_dataset
from dto_pipeline.data.manifest import build_manifest
from dto_pipeline.data.people import People, read_people
from dto_pipeline.data.placed import read_placed
from dto_pipeline.evaluate.placement_evaluation import evaluate_synthetic
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.scene import PlacedScene

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
    columns = evaluate_synthetic({"labels": before, "run": labels}, truth, body, resamples=0).columns
    return {name: {key: found.value for key, found in column.estimates.items()} for name, column in columns.items()}


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
