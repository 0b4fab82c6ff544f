"""All targets of jobs/fuzz.sh, a hundred inputs each from a fixed seed: the same verdict every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from tests.data.small_set import all_rows, label_arrays, small_dataset
from tests.fuzz.seeds import save_npz
from tests.fuzz.targets import TARGETS, damaged_files, try_one

pytestmark = pytest.mark.slow

COUNTS = {"bodies": 25, "checkpoints": 30, "pickles": 1000, "tars": 300}  # by how fast they are read


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_by_name(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    refused = [
        try_one(target, path)
        for path in damaged_files(name, 1, COUNTS.get(name, 100), tmp_path / f"input{target.suffix}")
    ]
    assert len(refused) == COUNTS.get(name, 100)


def test_a_build_over_a_damaged_tar_keeps_every_label_row(tmp_path: Path) -> None:
    for folder in ("labels", "tars"):
        (tmp_path / folder).mkdir()
    save_npz(**label_arrays(["a/b/0.jpg", "1.jpg", "3.jpg"]))(tmp_path / "labels/small-release.npz")
    dataset = small_dataset(tmp_path, images="tars", images_in="tars", masks="detection", key_parts=3)
    for _ in damaged_files("tars", 2, 40, tmp_path / "tars/0.tar"):
        report = build_manifest(dataset, tmp_path / "m.parquet", progress=False)
        rows = all_rows(Manifest.open(tmp_path / "m.parquet"))
        assert sorted(p["source_row"] for row in rows for p in row["persons"]) == [0, 1, 2]
        assert sum(report.image_problems.values()) == sum(row["problem_status"] is not None for row in rows)
