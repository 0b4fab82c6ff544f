"""Label files found, read and taken apart; a training set over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from dto_pipeline.collate import keep_labels
from dto_pipeline.data.images import ImageMissing, ImageStore
from dto_pipeline.data.label_files import (
    LabelColumns,
    find_label_files,
    flatten_table,
    initial_betas,
)
from dto_pipeline.data.labels import LabelsError, build_label_table, read_labels, write_label_shard
from dto_pipeline.data.storage import base_name
from dto_pipeline.data.training_labels import LABEL_IMAGES, LABEL_PEOPLE, LabelDataset
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus
from tests.crowds import Stander, make_scene


@pytest.fixture(scope="module")
def placed(body: BodyModel) -> list[PlacedScene]:
    """Scenes of 2, 0, 3 and 1 people; the third is accepted."""
    found = []
    for number, people in enumerate((2, 0, 3, 1)):
        crowd = [Stander(x=i - 1.0, z=4.0 + i + number) for i in range(max(people, 1))]
        scene = make_scene(body, crowd, size=(120, 160), name=f"{number}")
        if people == 0:
            for name in ("pose", "betas", "transl", "age_years", "male_prob", "source_row", "bbox_xyxy", "det_score"):
                setattr(scene, name, getattr(scene, name)[:0])
            scene.person_problem = []
        found.append(keep_labels(scene))
    found[2].is_optimized = found[2].is_accepted = True
    found[2].person_status = [PersonStatus.MOVED, PersonStatus.INVALID_LABEL, PersonStatus.TOO_TALL]
    found[2].beta_index = np.array([10, -1, 0], np.int32)
    found[2].betas = found[2].betas + np.float32(0.5) * (np.arange(11) == np.array([[10], [-1], [0]]))
    return found


@pytest.fixture
def folder(placed: list[PlacedScene], tmp_path: Path) -> Path:
    write_label_shard(build_label_table(placed[:2]), tmp_path / "labels" / "a.parquet", {})
    write_label_shard(build_label_table(placed[2:]), tmp_path / "labels" / "sub" / "b.parquet", {})
    (tmp_path / "labels" / ".hidden.parquet").write_bytes(b"")
    pq.write_table(pa.table({"colour": [1]}), tmp_path / "labels" / "other.parquet")
    return tmp_path / "labels"


@pytest.fixture
def columns(folder: Path) -> LabelColumns:
    return flatten_table(read_labels(*find_label_files(folder)))


def test_only_label_files_are_found_in_order(folder: Path) -> None:
    assert [base_name(path) for path in find_label_files(folder)] == ["a.parquet", "b.parquet"]
    assert find_label_files(folder / "a.parquet") == [folder / "a.parquet"]
    with pytest.raises(LabelsError, match="no label file"):
        find_label_files(folder / "nowhere")


def test_a_parquet_file_that_cannot_be_read_is_named_and_not_left_out(folder: Path) -> None:
    damaged = folder / "sub" / "b.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(LabelsError, match=r"b\.parquet is not a whole Parquet file"):
        find_label_files(folder)


def test_people_stay_with_their_image(columns: LabelColumns, placed: list[PlacedScene]) -> None:
    assert columns.starts.tolist() == [0, 2, 2, 5, 6]
    assert columns.owner.tolist() == [0, 0, 2, 2, 2, 3]
    np.testing.assert_array_equal(columns.people["transl"], np.concatenate([p.transl for p in placed]))
    np.testing.assert_array_equal(columns.intrinsics[3], placed[3].scene.intrinsics)


def test_taking_images_in_any_order_takes_their_people(columns: LabelColumns) -> None:
    taken = columns.take(np.array([3, 1, 2, 2]))
    assert taken.starts.tolist() == [0, 1, 1, 4, 7]
    np.testing.assert_array_equal(taken.people["transl"], columns.people["transl"][[5, 2, 3, 4, 2, 3, 4]])
    assert columns.take(np.array([], int)).num_people == 0


def test_initial_betas_undo_the_one_that_was_changed(columns: LabelColumns, placed: list[PlacedScene]) -> None:
    np.testing.assert_array_equal(initial_betas(columns), np.concatenate([p.scene.betas for p in placed]))
    assert (columns.people["betas"] != initial_betas(columns)).any()


def test_single_columns_can_be_read_and_unknown_ones_are_named(folder: Path) -> None:
    files = find_label_files(folder)
    table = read_labels(*files, columns=["image_id"], people=["transl", "status"])
    assert table.column_names == ["image_id", "persons"]
    assert sorted(flatten_table(table).people) == ["status", "transl"]
    assert read_labels(*files, columns=["image_id"], people=()).column_names == ["image_id"]
    assert read_labels(*files, people=["transl"]).column_names == read_labels(*files).column_names
    for unknown in ({"columns": ["colour"]}, {"people": ["colour"]}):
        with pytest.raises(LabelsError, match="colour"):
            read_labels(*files, **unknown)


def test_a_training_set_holds_accepted_images_with_people_only(folder: Path, placed: list[PlacedScene]) -> None:
    columns = flatten_table(read_labels(*find_label_files(folder), columns=LABEL_IMAGES, people=LABEL_PEOPLE))
    assert LabelDataset(columns).image_ids == ["test/2.jpg"]
    everything = LabelDataset(columns, select="all")
    assert everything.image_ids == ["test/0.jpg", "test/2.jpg", "test/3.jpg"]
    item = everything[1]
    assert item["usable"].tolist() == [True, False, True]
    assert item["moved"].tolist() == [True, False, False]
    assert torch.equal(item["transl"], torch.from_numpy(placed[2].transl))
    assert item["image_size"].tolist() == [120, 160]
    assert "image" not in item
    assert everything[-1]["image_id"] == "test/3.jpg"
    with pytest.raises(IndexError):
        everything[3]
    with pytest.raises(LabelsError, match="'best'"):
        LabelDataset(columns, select="best")


def test_workers_give_the_same_items_and_a_lost_photograph_is_an_error(columns: LabelColumns, tmp_path: Path) -> None:
    dataset = LabelDataset(columns, select="all")
    batches = list(DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=list))
    assert [item["image_id"] for batch in batches for item in batch] == dataset.image_ids
    with pytest.raises(ImageMissing):
        LabelDataset(columns, ImageStore(tmp_path), "all")[0]
