"""Runs compared: equal ones are equal; every difference is counted once and the largest are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.commands.diff import compare
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import LabelsError, build_label_table, read_placed, write_label_shard
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.people_diff import PeopleDiff
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import ImageStatus, PersonStatus
from tests.tiny_dataset import TinyDataset
from tests.view.conftest import first_moved, rewrite_shard


def diff_of(before: Path, after: Path, worst: int = 10) -> PeopleDiff:
    return compare(str(before), str(after), worst=worst)


def test_a_run_is_equal_to_itself_and_to_its_copy(run_dir: Path, copy: Path, tiny: TinyDataset) -> None:
    diff = diff_of(run_dir, copy)
    assert diff.equal, diff.as_table()
    assert (diff.images, diff.people + diff.unusable["before"], diff.different) == (tiny.images, tiny.persons, 0)
    assert diff.as_table().endswith("equal")


def test_the_person_that_moved_most_is_named_with_its_distance(run_dir: Path, copy: Path) -> None:
    names = []

    def move(placed: list[PlacedScene]) -> None:
        item, person = first_moved(placed)
        item.transl[person] += np.array([0, 0, 0.5], np.float32)
        item.person_status[person] = PersonStatus.TOO_TALL
        names.append(f"{item.scene.image_id}, person {person}")

    rewrite_shard(copy, 1, move)
    diff = diff_of(run_dir, copy)
    assert not diff.equal
    assert (diff.different, diff.status_changes) == (1, {"moved -> too_tall": 1})
    ((size, words),) = diff.worst
    assert size == diff.statistics("dz")["largest"] == diff.statistics("apart")["largest"] == pytest.approx(0.5, 1e-5)
    assert words.startswith(names[0])
    assert "status    moved -> too_tall: 1" in diff.as_table()
    assert json.loads(json.dumps(diff.to_json(), allow_nan=False))["different"] == 1


def test_the_status_of_an_image_alone_is_a_difference(run_dir: Path, copy: Path) -> None:
    def call_otherwise(placed: list[PlacedScene]) -> None:
        first_moved(placed)[0].status = ImageStatus.NOT_OPTIMIZED

    rewrite_shard(copy, 1, call_otherwise)
    diff = diff_of(run_dir, copy)
    assert (diff.different, diff.equal, diff.image_changes) == (0, False, {"optimized -> not_optimized": 1})
    assert "image     optimized -> not_optimized: 1" in diff.as_table()
    assert json.loads(json.dumps(diff.to_json()))["image_changes"] == diff.image_changes


def test_images_of_one_side_only_are_counted_and_named_accepted_or_not(run_dir: Path) -> None:
    shards = find_label_files(run_dir)
    diff = diff_of(run_dir, Path(shards[0]))
    assert (diff.images, diff.images_only, diff.equal) == (3, {"before": 6, "after": 0}, False)
    assert len(diff.images_apart) == 5
    assert diff_of(Path(shards[0]), run_dir).images_only == {"before": 0, "after": 6}


def test_files_cut_otherwise_are_joined_by_key(run_dir: Path, tmp_path: Path) -> None:
    placed = [item for path in find_label_files(run_dir) for item in read_placed(path)]
    write_label_shard(build_label_table(placed[::-1]), tmp_path / "all" / "labels.parquet", {})
    assert diff_of(run_dir, tmp_path / "all").equal
    assert diff_of(tmp_path / "all", run_dir).equal


def test_what_holds_no_labels_is_refused_with_a_next_step(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DtoError, match="holds no label file"):
        diff_of(tmp_path / "empty", copy)
    for path in RunDirectory(copy).at("receipts").iterdir():
        path.unlink()
    with pytest.raises(LabelsError, match="dto status"):
        diff_of(copy, copy)


def test_a_body_that_was_moved_costs_the_heights_only(run_dir: Path, copy: Path) -> None:
    run_file = copy / "run.json"
    run_file.write_text(run_file.read_text().replace('"model_path": "demo"', '"model_path": "gone.npz"'))
    diff = diff_of(copy, run_dir)
    assert (diff.equal, diff.heights) == (True, False)
    assert "name the body with --body" in diff.as_table()
    assert compare(str(copy), str(run_dir), "demo").heights
