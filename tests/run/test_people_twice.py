"""The same person in two label rows, through a whole run: measured once, placed once, exported once."""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.cli import main
from dto_pipeline.config import load_config
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.status import PersonStatus
from dto_pipeline.view.verify import verify_run
from tests.tiny_dataset import write_tiny_dataset


@pytest.fixture(scope="module", params=["paper", "joint"])
def case(request, tmp_path_factory, body):
    """Three images whose people are all named twice, the second time as another detector might; a run of them."""
    root = tmp_path_factory.mktemp(request.param)
    tiny = write_tiny_dataset(root / "data", body, images=3, shard_images=3, broken=False)
    labels, rng = root / "data" / tiny.dataset.labels, np.random.default_rng(0)
    arrays = dict(np.load(labels))
    rows = len(arrays["imgname"])
    again = {name: values.copy() for name, values in arrays.items()}
    again["pose_cam"] += rng.normal(0, 0.02, again["pose_cam"].shape).astype(np.float32)
    again["trans_cam"] *= 1 + rng.normal(0, 0.005, (rows, 1)).astype(np.float32)
    both: dict[str, Any] = {name: np.concatenate([values, again[name]]) for name, values in arrays.items()}
    np.savez(labels, **both)
    sidecar = root / "data" / tiny.dataset.sidecar
    side = pq.read_table(sidecar)
    twice = side.set_column(0, side.schema.field(0), pa.array(np.arange(rows) + rows))
    pq.write_table(pa.concat_tables([side, twice]), sidecar)
    report = build_manifest(tiny.dataset, tiny.manifest, progress=False)
    overrides = [f"solver.mode={request.param}", "run.workers=0", "run.device=cpu", "body.model_path=demo"]
    run_pipeline(tiny.manifest, root / "run", load_config(overrides=overrides), progress=False)
    return root, tiny, report, rows


def read_rows(run):
    return read_labels(RunDirectory(run).label_file(0)).to_pylist()


def test_the_build_counts_them_and_the_run_gives_them_a_status(case):
    root, _, report, rows = case
    assert report.person_problems == {"duplicate, the same person as another label row of the image": rows}
    assert "duplicate, the same person" in report.as_table()
    people = [person for row in read_rows(root / "run") for person in row["persons"]]
    assert sum(person["status"] == PersonStatus.DUPLICATE for person in people) == rows
    assert all(p["message"].startswith("the same person as") for p in people if p["status"] == PersonStatus.DUPLICATE)
    assert sum(person["status"] == PersonStatus.MOVED for person in people) > rows / 2


def test_nobody_stands_away_from_himself(case):
    root, *_ = case
    moved = 0.0
    for row in read_rows(root / "run"):
        half = len(row["persons"]) // 2
        for one, other in zip(row["persons"][:half], row["persons"][half:], strict=True):
            assert np.linalg.norm(np.subtract(one["transl"], other["transl"])) < 0.15
            moved = max(moved, abs(one["transl"][2] - one["transl_init"][2]))
    assert moved > 0.3


def test_such_a_run_holds_and_can_be_undone(case):
    root, tiny, *_ = case
    verdict = verify_run(root / "run", tiny.manifest)
    assert verdict.passed, verdict.as_table()


@pytest.mark.parametrize("kind", ["ma-hmr", "camerahmr", "persons", "parquet"])
def test_exports_name_everybody_once(case, kind, tmp_path, capsys):
    root, *_ = case
    assert main(["export", str(root / "run"), "--format", kind, "-o", str(tmp_path / "e"), "--quiet"]) == 0
    if kind == "parquet":
        count = sum(map(len, pq.read_table(next((tmp_path / "e").rglob("*.parquet")))["persons"].to_pylist()))
    elif kind == "persons":
        count = pq.read_table(next((tmp_path / "e").rglob("*.parquet"))).num_rows
    else:
        found = np.load(next((tmp_path / "e").rglob("*.npz")), allow_pickle=True)
        count = len(found["imgname"]) if kind == "camerahmr" else sum(map(len, found["annots"][()].values()))
    accepted = [row for row in read_rows(root / "run") if row["is_accepted"] or kind in ("persons", "parquet")]
    assert count == sum(row["num_persons"] for row in accepted) // 2 > 0


def test_a_manifest_made_from_such_a_run_finds_them_again(case):
    root, _, _, rows = case
    dataset = Dataset(name="again", source="labels", labels="run", images="data/images", depth="data/depth", root=root)
    report = build_manifest(dataset, root / "again.parquet", progress=False)
    assert sum(report.person_problems.values()) == rows


def test_such_a_run_is_measured_and_compared_as_its_export_is(case, tmp_path, capsys):
    """Somebody labelled twice is no second person whom a network made up, nor one whom the export lacks."""
    root, _, _, rows = case
    run, found = str(root / "run"), str(tmp_path / "e")
    assert main(["export", run, "--format", "parquet", "-o", found, "--quiet"]) == 0
    assert main(["diff", run, found, "--body", "demo"]) == 0
    capsys.readouterr()
    for one, other in ((run, found), (found, run)):
        assert main(["eval", "meshes", one, other, "--body", "demo", "--resamples", "0"]) == 0
        said = capsys.readouterr().out
        assert re.search(rf"people found +{rows}\n.*matched +{rows}\nmissed +0\nextra +0\n", said, re.DOTALL)
        assert f"{rows} label rows that repeat another person are left out" in said
