from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.collate import keep_labels
from dto_pipeline.data.columns import rows_sha256
from dto_pipeline.data.labels import (
    LabelsError,
    build_label_table,
    read_label_metadata,
    read_labels,
    read_placed,
    write_label_shard,
)
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.schema import LABELS_SCHEMA
from dto_pipeline.status import ImageStatus, PersonStatus


def make_scene(number: int, people: int) -> Scene:
    random = np.random.default_rng(number)

    def numbers(*shape: int) -> np.ndarray:
        return random.normal(size=(people, *shape)).astype(np.float32)

    return Scene(
        image_id=f"set/{number}.jpg",
        subset="set",
        image_path=f"{number}.jpg",
        width=640,
        height=480,
        intrinsics=np.array([[600.5, 0, 320], [0, 601, 240], [0, 0, 1]]),
        pose=numbers(72),
        betas=numbers(11),
        transl=numbers(3),
        age_years=numbers(),
        male_prob=numbers(),
        source_row=np.arange(people) + 10 * number,
        bbox_xyxy=numbers(4),
        det_score=numbers(),
        person_problem=[None] * people,
        image_sha256="ab" * 32,
        origin={"masks": "sidecar", "attributes": "unknown"},
    )


def make_placed(number: int, people: int) -> PlacedScene:
    scene = make_scene(number, people)
    random = np.random.default_rng(100 + number)
    index = np.arange(people, dtype=np.int32) % 12 - 1
    return replace(
        keep_labels(scene),
        status=ImageStatus.OPTIMIZED,
        message=None,
        person_status=[PersonStatus.MOVED] * people,
        betas=scene.betas + np.float32(0.5) * (np.arange(11) == index[:, None]),
        transl=random.normal(size=(people, 3)).astype(np.float32),
        scale=random.random(people).astype(np.float32),
        beta_index=index,
        height_class=np.arange(people, dtype=np.int32) % 7 - 1,
        depth_group=np.arange(people, dtype=np.int8) % 3 - 1,
        is_optimized=True,
        deviation=0.75,
        alpha=(30.0, 40.0),
        beta=(1.0, 2.0),
        used_ground=True,
    )


def failed(number: int, people: int) -> PlacedScene:
    scene = make_scene(number, people)
    scene.problem = (ImageStatus.IMAGE_MISSING, "no such file")
    return keep_labels(scene)


def test_every_scene_is_a_row_and_every_number_arrives(tmp_path):
    placed = [make_placed(0, 3), failed(1, 2), make_placed(2, 0)]
    table = build_label_table(placed)
    assert table.schema.equals(LABELS_SCHEMA)
    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == ["set/0.jpg", "set/1.jpg", "set/2.jpg"]
    assert [row["num_persons"] for row in rows] == [3, 2, 0]
    for row, item in zip(rows, placed, strict=True):
        people = row["persons"]
        assert [p["person_index"] for p in people] == list(range(item.scene.num_people))
        assert [p["source_row"] for p in people] == item.scene.source_row.tolist()
        assert [p["status"] for p in people] == [str(status) for status in item.person_status]
        for column, value in (
            ("pose", item.scene.pose),
            ("transl_init", item.scene.transl),
            ("bbox_xyxy", item.scene.bbox_xyxy),
            ("age_years", item.scene.age_years),
            *((name, getattr(item, name)) for name in ("betas", "transl", "scale", "beta_index", "depth_group")),
            *((name, getattr(item, name)) for name in ("height_m", "z_sigma_m", "mask_pixels", "visible_vertices")),
        ):
            arrived = np.array([p[column] for p in people]).reshape(value.shape)
            np.testing.assert_array_equal(arrived, value, err_msg=column)


def test_columns_of_the_image_are_those_of_the_scene():
    row = build_label_table([make_placed(0, 2)]).to_pylist()[0]
    assert (row["fx"], row["fy"], row["cx"], row["cy"]) == (600.5, 601, 320, 240)
    assert (row["alpha_near"], row["alpha_far"], row["beta_near"], row["beta_far"]) == (30, 40, 1, 2)
    assert (row["status"], row["message"], row["is_optimized"], row["is_accepted"]) == ("optimized", None, True, False)
    assert (row["mask_origin"], row["attribute_origin"], row["depth_origin"]) == ("sidecar", "unknown", None)
    assert row["mean_height_deviation"] == 0.75
    assert row["expected_error_m"] is None  # of a solver that knows no posterior
    assert row["used_ground_evidence"] is True


def test_the_changed_coefficient_can_be_undone_exactly():
    item = make_placed(0, 12)
    for person, p in enumerate(build_label_table([item]).to_pylist()[0]["persons"]):
        if item.beta_index[person] < 0:
            assert np.isnan(p["beta_init"])
        else:
            assert np.float32(p["beta_init"]) == item.scene.betas[person, item.beta_index[person]]


def test_classes_are_words_and_null_where_not_computed():
    people = build_label_table([make_placed(0, 7)]).to_pylist()[0]["persons"]
    words = [p["height_class"] for p in people]
    assert words == [None, "baby", "kid", "teen", "adult_female", "adult_male", "adult"]


def test_a_failed_image_keeps_its_labels_and_says_why():
    row = build_label_table([failed(1, 2)]).to_pylist()[0]
    assert (row["status"], row["message"]) == ("image_missing", "no such file")
    assert [p["status"] for p in row["persons"]] == ["not_run"] * 2
    assert row["persons"][1]["transl"] == row["persons"][1]["transl_init"]
    assert np.isnan(row["alpha_near"])


def test_no_scenes_make_an_empty_table():
    table = build_label_table([])
    assert table.num_rows == 0
    assert table.schema.equals(LABELS_SCHEMA)


def test_a_scene_that_lost_a_person_is_refused_by_name():
    item = make_placed(3, 2)
    item.person_status.pop()
    with pytest.raises(ValueError, match=r"set/3.jpg: fields hold \[1, 2\] people"):
        build_label_table([item])


def test_written_labels_read_back_equal_with_their_footer(tmp_path):
    table = build_label_table([make_placed(0, 3), failed(1, 2)])
    path = tmp_path / "labels" / "shard-00000.parquet"
    assert write_label_shard(table, path, {"shard_key": "k", "config_hash": "h"})
    assert rows_sha256(read_labels(path)) == rows_sha256(table)  # unlike ==, equal NaN count as equal
    footer = read_label_metadata(path)
    assert (footer["shard_key"], footer["config_hash"], footer["schema"]) == ("k", "h", "dto-labels/1")
    assert "z forward" in footer["coordinates"]
    assert read_labels(path).schema.field("fx").metadata[b"unit"] == b"px"


def test_equal_labels_give_identical_bytes_whatever_the_order_of_the_footer(tmp_path):
    for name, footer in (("a", {"x": "1", "y": "2"}), ("b", {"y": "2", "x": "1"})):
        write_label_shard(build_label_table([make_placed(0, 3)]), tmp_path / name, footer)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_shard_that_exists_is_never_written_again(tmp_path):
    path = tmp_path / "x.parquet"
    write_label_shard(build_label_table([make_placed(0, 3)]), path, {})
    before = path.read_bytes()
    assert not write_label_shard(build_label_table([make_placed(1, 1)]), path, {})
    assert path.read_bytes() == before


def test_floats_are_stream_split_and_groups_hold_1024_images(tmp_path):
    table = build_label_table([make_placed(0, 1)] * 1025)
    write_label_shard(table, tmp_path / "x.parquet", {})
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [1024, 1]
    for i in range(metadata.num_columns):
        column = metadata.row_group(0).column(i)
        split = column.physical_type in ("FLOAT", "DOUBLE")
        assert ("BYTE_STREAM_SPLIT" in column.encodings) == split, column.path_in_schema
        assert column.compression == "ZSTD"


def test_files_that_are_no_labels_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    write_label_shard(build_label_table([make_placed(0, 1)]), path, {})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LabelsError, match="truncated"):
        read_labels(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(LabelsError, match="is it a label shard"):
        read_labels(path)
    other = build_label_table([make_placed(0, 1)]).drop_columns(["fx"])
    pq.write_table(other.replace_schema_metadata({"schema": "dto-labels/1"}), path)
    with pytest.raises(LabelsError, match=r"missing \['fx'\]"):
        read_labels(path)
    with pytest.raises(LabelsError, match=r"missing \['fx'\]"):
        write_label_shard(other, tmp_path / "y.parquet", {})


def test_damaged_rows_behind_a_sound_footer_are_refused(tmp_path):
    path = tmp_path / "x.parquet"
    write_label_shard(build_label_table([make_placed(0, 3)]), path, {})
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(bytes(data))
    with pytest.raises(LabelsError, match="damaged"):
        read_labels(path)


def test_a_damaged_name_inside_a_column_is_refused_as_the_column_would_be_left_out(tmp_path):
    path = tmp_path / "x.parquet"
    write_label_shard(build_label_table([make_placed(0, 3)]), path, {})
    data = path.read_bytes()
    place = data.index(b"element", data.index(b"betas"))  # Parquet's name of the numbers in the list
    path.write_bytes(data[:place] + b"elemint" + data[place + 7 :])
    with pytest.raises(LabelsError, match=r"unknown columns \['persons.list.element.betas.list.elemint'\]"):
        read_labels(path, columns=["image_id"], people=("betas",))


def test_labels_of_an_older_version_are_read_with_null_in_the_columns_it_did_not_know(tmp_path):
    table = build_label_table([replace(make_placed(0, 3), expected_error=0.25), make_placed(1, 2)])
    assert table.column("expected_error_m").to_pylist() == [0.25, None]
    old = tmp_path / "old.parquet"
    pq.write_table(table.drop_columns(["expected_error_m"]).replace_schema_metadata({"schema": "dto-labels/1"}), old)
    found = read_labels(old)
    assert found.column_names == LABELS_SCHEMA.names
    assert found.column("expected_error_m").null_count == 2
    assert read_labels(old, columns=["image_id"], people=()).column_names == ["image_id"]
    assert read_labels(old, columns=["expected_error_m", "image_id"]).column("expected_error_m").null_count == 2


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    placed = [make_placed(0, 3), make_placed(1, 1), failed(2, 2), make_placed(3, 0)]
    write_label_shard(build_label_table(placed), tmp_path / "shard.parquet", {})
    for before, after in zip(placed, read_placed(tmp_path / "shard.parquet"), strict=True):
        assert after.status is before.status
        assert after.person_status == before.person_status
        assert after.message == before.message
        for name in ("betas", "transl", "scale", "height_class", "height_m", "mask_pixels", "depth_group"):
            assert np.array_equal(getattr(after, name), getattr(before, name), equal_nan=True), name
        assert np.allclose(after.alpha, before.alpha, equal_nan=True)
        for name in ("pose", "betas", "transl", "age_years", "source_row", "intrinsics"):
            assert np.array_equal(getattr(after.scene, name), getattr(before.scene, name)), name
