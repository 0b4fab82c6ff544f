"""Equal runs are equal; every difference is counted once and the largest are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.data.labels import LabelsError, build_label_table, write_label_shard
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus
from dto_pipeline.view.diff import _difference, diff_labels
from dto_pipeline.view.run_files import find_labels
from tests.tiny_dataset import TinyDataset
from tests.view.conftest import first_moved, rewrite_shard


def test_a_run_is_equal_to_itself_and_to_its_copy(run_dir: Path, copy: Path, tiny: TinyDataset) -> None:
    diff = diff_labels(run_dir, copy)
    assert diff.equal
    assert (diff.images, diff.persons, diff.persons_different) == (tiny.images, tiny.persons, 0)
    assert diff.as_table().endswith("equal")


def test_the_person_that_moved_most_is_named_with_its_distance(run_dir: Path, copy: Path) -> None:
    names = []

    def move(placed: list[PlacedScene]) -> None:
        item, person = first_moved(placed)
        item.transl[person] += np.array([0, 0, 0.5], np.float32)
        item.person_status[person] = PersonStatus.TOO_TALL
        names.append(f"{item.scene.image_id}, person {person}")

    rewrite_shard(copy, 1, move)
    diff = diff_labels(run_dir, copy)
    assert not diff.equal
    assert (diff.images_different, diff.persons_different) == (1, 1)
    assert diff.person_changes == {"moved -> too_tall": 1}
    ((_, line),) = diff.worst
    assert line.startswith("0.500 m")
    assert names[0] in line
    assert diff.quantiles("transl")[2] == pytest.approx(0.5, abs=1e-5)
    assert diff.quantiles("transl")[0] == pytest.approx(0.5, rel=0.07)


def test_nobody_compared_is_no_error() -> None:
    nobody = np.zeros((0, 3))
    assert [part.shape for part in _difference(nobody, nobody, together=True)] == [(0,), (0,)]


def test_only_the_worst_persons_are_kept(run_dir: Path, copy: Path) -> None:
    def shift_all(placed: list[PlacedScene]) -> None:
        for item in placed:
            item.transl[:] += np.arange(1, len(item.transl) + 1, dtype=np.float32)[:, None]

    rewrite_shard(copy, 2, shift_all)
    diff = diff_labels(run_dir, copy, worst=2)
    sizes = [size for size, _ in diff.worst]
    assert len(sizes) == 2
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(diff.quantiles("transl")[2], abs=1e-3)


def test_images_of_one_side_only_are_listed(run_dir: Path) -> None:
    shards = find_labels(run_dir)
    diff = diff_labels(run_dir, shards[0])
    assert len(diff.only_before) == 6
    assert diff.images == 3
    assert len(diff_labels(shards[0], run_dir).only_after) == 6


def test_people_that_are_not_the_same_are_not_compared(run_dir: Path, copy: Path) -> None:
    def swap_rows(placed: list[PlacedScene]) -> None:
        item, _ = first_moved(placed)
        item.scene.source_row[:] = item.scene.source_row[::-1]

    rewrite_shard(copy, 1, swap_rows)
    diff = diff_labels(run_dir, copy)
    assert len(diff.other_people) == 1
    assert not diff.equal


def test_files_cut_otherwise_are_joined_by_key(run_dir: Path, tmp_path: Path) -> None:
    from dto_pipeline.data.labels import read_placed

    placed = [item for path in find_labels(run_dir) for item in read_placed(path)]
    write_label_shard(build_label_table(placed[::-1]), tmp_path / "all" / "labels.parquet", {})
    assert diff_labels(run_dir, tmp_path / "all").equal


def test_what_holds_no_labels_is_refused_with_a_next_step(tmp_path: Path, copy: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelsError, match="holds no label file"):
        diff_labels(tmp_path / "empty", copy)
    for path in RunDirectory(copy).at("receipts").iterdir():
        path.unlink()
    with pytest.raises(LabelsError, match="dto status"):
        diff_labels(copy, copy)


def test_a_person_with_an_unknown_number_can_lose_another(run_dir: Path, copy: Path, tmp_path: Path) -> None:
    def lose(first: int, last: int) -> Callable[[list[PlacedScene]], None]:
        def spoil(placed: list[PlacedScene]) -> None:
            item, person = first_moved(placed)
            item.betas[person, first:last] = np.nan

        return spoil

    rewrite_shard(copy, 1, lose(0, 1))
    more = tmp_path / "more"
    shutil.copytree(copy, more)
    rewrite_shard(more, 1, lose(0, 3))
    diff = diff_labels(copy, more)
    assert (diff.persons_different, diff.became_unknown) == (1, {"betas": 1})


def test_a_number_that_was_lost_is_counted_apart_and_leaves_the_statistics_alone(run_dir: Path, copy: Path) -> None:
    names = []

    def lose_one_and_grow_another(placed: list[PlacedScene]) -> None:
        item, person = first_moved(placed)
        item.height_m[person] = np.nan
        item.transl[person] = np.nan
        names.append(f"{item.scene.image_id}, person {person}")
        item.height_m[person - 1] += 0.25

    rewrite_shard(copy, 1, lose_one_and_grow_another)
    diff = diff_labels(run_dir, copy)

    assert diff.became_unknown == {"transl": 1, "height_m": 1}
    assert (diff.images_different, diff.persons_different, diff.became_known) == (1, 2, {})
    assert diff.quantiles("height_m") == pytest.approx([0.25] * 3, rel=0.07)
    assert "transl" not in diff.sizes
    assert diff.worst == []
    assert f"{names[0]}: height [m] became unknown" in diff.as_table()
    assert "inf" not in diff.as_table()
    assert json.loads(json.dumps(diff.to_json(), allow_nan=False))["became_unknown"] == {"transl": 1, "height_m": 1}

    back = diff_labels(copy, run_dir)
    assert (back.became_known, back.became_unknown) == ({"transl": 1, "height_m": 1}, {})
    assert "height [m] became known: 1 persons" in back.as_table()
