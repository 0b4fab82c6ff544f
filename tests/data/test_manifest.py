from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.data.images import ImageHeader, ImageStore
from dto_pipeline.data.manifest import Manifest, ManifestError, report_path
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.schema import MANIFEST_SCHEMA
from tests.data.small_set import (
    HEIGHT,
    WIDTH,
    all_rows,
    build_small,
    label_arrays,
    small_dataset,
    write_image,
    write_labels_file,
)

NAMES = ["x/b.jpg", "x/a.jpg", "x/b.jpg", "c.jpg", "x/a.jpg"]  # rows of an image are not adjacent


@pytest.fixture
def root(tmp_path):
    for name in set(NAMES):
        write_image(tmp_path, name)
    return tmp_path


def test_every_label_row_arrives_once_in_source_order_under_its_image(root):
    manifest, report = build_small(root, NAMES)
    rows = all_rows(manifest)
    assert [row["image_file"] for row in rows] == ["x/b.jpg", "x/a.jpg", "c.jpg"]
    assert [[p["source_row"] for p in row["persons"]] for row in rows] == [[0, 2], [1, 4], [3]]
    assert [[p["person_index"] for p in row["persons"]] for row in rows] == [[0, 1], [0, 1], [0]]
    assert [row["num_persons"] for row in rows] == [2, 2, 1]
    assert (report.images, report.persons) == (3, 5)
    assert (manifest.num_images, manifest.num_people) == (3, 5)


def test_labels_are_carried_unchanged(root):
    manifest, _ = build_small(root, NAMES)
    arrays, people = label_arrays(NAMES), [p for row in all_rows(manifest) for p in row["persons"]]
    rows = [p["source_row"] for p in people]
    for column, key in (("pose", "pose_cam"), ("transl", "trans_cam"), ("betas", "shape")):
        given = arrays[key][rows]
        np.testing.assert_array_equal(np.array([p[column] for p in people])[:, : given.shape[1]], given)
    assert all(p["problem"] is None and p["mask_rle"] is None and np.isnan(p["age_years"]) for p in people)


def test_keys_keep_the_last_parts_and_files_the_whole_path(root):
    for parts, keys in ((1, ["b.jpg", "a.jpg", "c.jpg"]), (3, ["x/b.jpg", "x/a.jpg", "c.jpg"])):
        rows = all_rows(build_small(root, NAMES, key_parts=parts)[0])
        assert [row["image_path"] for row in rows] == keys
        assert [row["image_id"] for row in rows] == [f"small/{key}" for key in keys]
        assert [row["depth_file"] for row in rows] == ["x/b.npy", "x/a.npy", "c.npy"]


def test_two_spellings_of_a_path_are_one_image(root):
    rows = all_rows(build_small(root, ["x/a.jpg", "x//a.jpg", "./x/a.jpg"])[0])
    assert [len(row["persons"]) for row in rows] == [3]


def test_images_that_share_a_key_stay_apart_and_the_later_one_is_refused(root):
    rows = all_rows(build_small(root, ["x/a.jpg", "a.jpg"])[0])
    assert len({row["image_id"] for row in rows}) == 2
    assert rows[0]["problem_status"] is None
    assert rows[1]["problem_status"] == "label_invalid"
    assert "key_parts" in rows[1]["problem"]


def test_shards_are_row_groups_of_the_size_asked_for(root):
    manifest, _ = build_small(root, NAMES, shard_images=2)
    assert [tuple(size) for size in manifest.shard_sizes] == [(2, 4), (1, 1)]
    assert [manifest.read_shard(k)["shard"].to_pylist() for k in range(2)] == [[0, 0], [1]]
    assert pq.ParquetFile(manifest.path).metadata.num_row_groups == 2
    with pytest.raises(IndexError, match=r"shards 0 \.\. 1"):
        manifest.read_shard(2)


def test_the_footer_says_where_everything_came_from(root):
    manifest, _ = build_small(root, NAMES, licence="ask first")
    assert manifest.subset == "small"
    assert manifest.images_root == root / "images"
    assert manifest.depth_root == root / "depth"
    assert manifest.dataset["licence"] == "ask first"
    assert '"labels/small-release.npz"' in manifest.metadata["label_files"]
    assert manifest.metadata["schema"] == "dto-manifest/1"
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_equal_input_gives_identical_bytes(root):
    manifest, _ = build_small(root, NAMES, shard_images=2)
    first = manifest.path.read_bytes()
    assert build_small(root, NAMES, shard_images=2)[0].path.read_bytes() == first


def test_the_fingerprint_ignores_where_the_data_lie_but_not_what_they_say(root, tmp_path_factory):
    fingerprint = build_small(root, NAMES)[0].fingerprint
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(root / "images", elsewhere / "images")
    assert build_small(elsewhere, NAMES)[0].fingerprint == fingerprint
    moved = label_arrays(NAMES)["trans_cam"]
    moved[3, 2] = np.nextafter(moved[3, 2], np.float32(9))
    assert build_small(elsewhere, NAMES, {"trans_cam": moved})[0].fingerprint != fingerprint
    (elsewhere / "images" / "c.jpg").unlink()
    assert build_small(elsewhere, NAMES)[0].fingerprint != fingerprint


def test_broken_and_missing_images_are_rows_with_a_problem_and_no_size(root):
    data = (root / "images" / "c.jpg").read_bytes()
    for name, content in (("zero.jpg", b""), ("text.jpg", b"hello"), ("cut.jpg", data[:30])):
        (root / "images" / name).write_bytes(content)
    names = ["c.jpg", "zero.jpg", "text.jpg", "cut.jpg", "gone.jpg", "gone.jpg"]
    manifest, report = build_small(root, names)
    rows = all_rows(manifest)
    assert [row["problem_status"] for row in rows] == [None, *["image_corrupt"] * 3, "image_missing"]
    assert [row["width"] for row in rows] == [WIDTH, 0, 0, 0, 0]
    assert report.image_problems == {"image_corrupt": 3, "image_missing": 1}
    assert not any(str(root) in (row["problem"] or "") for row in rows)


@pytest.mark.parametrize("name", ["../outside.jpg", "a/../../outside.jpg", "", "a\\b.jpg", "bad\x01.jpg"])
def test_a_name_that_leaves_the_folder_costs_its_image_and_is_never_opened(root, name, monkeypatch):
    asked: list[str] = []

    def header(_, image_file):
        asked.append(image_file)
        return ImageHeader(WIDTH, HEIGHT)

    monkeypatch.setattr(ImageStore, "header", header)
    manifest, report = build_small(root, [name, "c.jpg", name])
    assert asked == ["c.jpg"]
    rows = all_rows(manifest)
    assert [row["problem_status"] for row in rows] == ["label_invalid", None]
    assert rows[0]["width"] == 0
    assert rows[0]["depth_file"] is None
    assert [p["source_row"] for p in rows[0]["persons"]] == [0, 2]
    assert report.image_problems == {"label_invalid": 1}


def test_an_absolute_name_is_refused_even_if_the_file_exists(root):
    outside = write_image(root, "../outside.jpg")
    rows = all_rows(build_small(root, [str(outside)])[0])
    assert rows[0]["problem_status"] == "label_invalid"
    assert "leaves its folder" in rows[0]["problem"]


def with_camera(row, place, value):
    cameras = label_arrays(NAMES)["cam_int"]
    cameras[(row, *place)] = value
    return {"cam_int": cameras}


@pytest.mark.parametrize(
    ("row", "place", "value", "why"),
    [
        (2, (0, 0), 41, "differ between its label rows"),
        (2, (0, 2), np.nan, "differ between its label rows"),
        (0, (0, 0), np.inf, "not finite"),
        (3, (1, 1), 0, "not positive"),
        (3, (0, 0), -40, "not positive"),
        (3, (0, 1), 1, "skew"),
        (3, (2, 2), 2, "last row"),
    ],
)
def test_a_camera_that_cannot_be_costs_its_image_only(root, row, place, value, why):
    rows = all_rows(build_small(root, NAMES, with_camera(row, place, value))[0])
    faulty = [i for i, image in enumerate(rows) if image["problem_status"]]
    assert faulty == [0 if row < 3 else 2]
    assert rows[faulty[0]]["problem_status"] == "label_invalid"
    assert why in rows[faulty[0]]["problem"]
    assert rows[faulty[0]]["width"] == WIDTH


def test_an_image_of_another_size_than_its_camera_is_refused_unless_centres_are_free(root):
    write_image(root, "c.jpg", width=2 * WIDTH)
    write_image(root, "x/a.jpg", width=WIDTH + 1)  # within a pixel
    manifest, _ = build_small(root, NAMES)
    row = all_rows(manifest)[2]
    assert [r["problem_status"] for r in all_rows(manifest)] == [None, None, "size_mismatch"]
    assert f"{2 * WIDTH} x {HEIGHT}" in row["problem"]
    assert f"expects {WIDTH} x {HEIGHT}" in row["problem"]
    assert row["width"] == 2 * WIDTH
    free, _ = build_small(root, NAMES, principal_point="free")
    assert all(row["problem_status"] is None for row in all_rows(free))


def test_a_placeholder_of_one_pixel_is_a_file_to_put_back_and_no_fault_of_the_label(root):
    write_image(root, "c.jpg", width=1, height=1)  # so small that the camera is beyond the bounds too
    statuses = [row["problem_status"] for row in all_rows(build_small(root, NAMES)[0])]
    assert statuses == [None, None, "size_mismatch"]


def test_people_that_cannot_be_used_are_counted_by_reason(root):
    spoiled = {key: label_arrays(NAMES)[key].astype(float) for key in ("pose_cam", "shape", "trans_cam")}
    spoiled["pose_cam"][0, 3] = np.nan
    spoiled["shape"][1, 0] = np.inf
    spoiled["trans_cam"][2, 2] = -1
    spoiled["trans_cam"][3] = 1e300
    manifest, report = build_small(root, NAMES, spoiled)
    problem = {p["source_row"]: p["problem"] for row in all_rows(manifest) for p in row["persons"]}
    assert [str(problem[row]).split()[0] for row in range(5)] == ["pose", "betas", "transl", "transl", "None"]
    assert sum(report.person_problems.values()) == 4


def test_the_sidecar_is_joined_by_label_row(root):
    block, other = np.zeros((HEIGHT, WIDTH), bool), np.ones((HEIGHT, WIDTH + 1), bool)
    block[3:9, 4:8] = True
    masks = [encode_rle(block), encode_rle(np.zeros_like(block)), encode_rle(other), b"\x00"]
    write_sidecar(
        root / "labels" / "s.parquet",
        np.array([4, 0, 2, 3]),
        age_years=np.array([44, 40, 42, -3.0]),
        mask_rle=masks,
        mask_height=np.full(4, HEIGHT),
        mask_width=np.array([WIDTH, WIDTH, WIDTH + 1, WIDTH]),
    )
    manifest, report = build_small(root, NAMES, sidecar="labels/s.parquet")
    people = {p["source_row"]: p for row in all_rows(manifest) for p in row["persons"]}
    np.testing.assert_array_equal([people[row]["age_years"] for row in range(5)], [40, np.nan, 42, np.nan, 44])
    assert [people[row]["mask_rle"] for row in range(5)] == [masks[1], None, masks[2], masks[3], masks[0]]
    assert "another size" in people[2]["problem"]
    assert "damaged" in people[3]["problem"]
    assert (report.masks_given, report.persons) == (4, 5)
    assert list(report.notes.values()) == [1, 1]  # an age of -3, a mask of nothing but ones
    assert "labels/s.parquet" in manifest.metadata["label_files"]


def test_the_report_is_written_beside_the_manifest_and_reads_as_a_table(root):
    manifest, report = build_small(root, [*NAMES, "gone.jpg"])
    path = Path(report_path(manifest.path))
    assert path.name == "small.report.json"
    assert '"images": 4' in path.read_text()
    table = report.as_table()
    assert "image problems: image_missing" in table
    assert manifest.fingerprint[:16] in table


def test_a_missing_label_file_or_sidecar_stops_the_build_and_leaves_nothing(root):
    with pytest.raises(LabelFileError, match="does not exist"):
        build_manifest(small_dataset(root), root / "m.parquet", progress=False)
    write_labels_file(root, label_arrays(NAMES))
    with pytest.raises(LabelFileError, match="does not exist"):
        build_manifest(small_dataset(root, sidecar="none.parquet"), root / "m.parquet", progress=False)
    assert not list(root.glob("*m.parquet*"))


def test_files_that_are_no_manifest_are_refused_with_a_next_step(root):
    manifest, _ = build_small(root, NAMES)
    data, path = manifest.path.read_bytes(), root / "other.parquet"
    path.write_bytes(data[:-9])
    with pytest.raises(ManifestError, match="truncated"):
        Manifest.open(path)
    for schema in ("dto-labels/1", "dto-manifest/2"):
        path.write_bytes(data.replace(b"dto-manifest/1", schema.encode().ljust(14)))
        with pytest.raises(ManifestError, match="dto manifest build"):
            Manifest.open(path)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({"schema": "dto-manifest/1"}), path)
    with pytest.raises(ManifestError, match="columns differ"):
        Manifest.open(path)
    pq.write_table(MANIFEST_SCHEMA.empty_table().replace_schema_metadata({"schema": "dto-manifest/1"}), path)
    with pytest.raises(ManifestError, match="footer lacks"):
        Manifest.open(path)
    with pytest.raises(ManifestError, match="does not exist"):
        Manifest.open(root / "none.parquet")


def test_a_manifest_damaged_after_opening_is_an_error_of_its_kind(root):
    manifest, _ = build_small(root, NAMES)
    data = bytearray(manifest.path.read_bytes())
    data[4:1000] = bytes(996)
    manifest.path.write_bytes(bytes(data))
    with pytest.raises(ManifestError, match="build it again"):
        manifest.read_shard(0)


def test_the_footer_is_parsed_once_for_all_shards_and_again_when_the_file_is_another(root, monkeypatch):
    parsed: list[bool] = []
    opened = pq.ParquetFile.__init__

    def count(self, *arguments, metadata=None, **options):
        parsed.append(metadata is None)
        opened(self, *arguments, metadata=metadata, **options)

    monkeypatch.setattr(pq.ParquetFile, "__init__", count)
    manifest, _ = build_small(root, NAMES, shard_images=1)
    parsed.clear()
    first = [manifest.read_shard(shard) for shard in range(manifest.num_shards)]
    assert parsed.count(True) == 1 < len(parsed)
    os.utime(manifest.path, ns=(0, 0))
    assert manifest.read_shard(0)["image_id"] == first[0]["image_id"]
    assert parsed.count(True) == 2


def test_a_column_that_may_not_be_null_is_named(root):
    manifest, _ = build_small(root, NAMES)
    table = pq.read_table(manifest.path)
    place = table.schema.get_field_index("subset")
    strict = table.schema.set(place, table.schema.field(place).with_nullable(False))
    strict = strict.with_metadata(pq.read_metadata(manifest.path).metadata)
    pq.write_table(table.cast(strict), root / "strict.parquet", row_group_size=1 << 20)
    with pytest.raises(ManifestError, match="column 'subset' is string not null; expected string"):
        Manifest.open(root / "strict.parquet")


@pytest.mark.parametrize("out", ["labels/small-release.npz", "images/c.jpg", "labels/people.parquet", "x.parquet"])
def test_a_manifest_replaces_manifests_only_and_nothing_that_it_is_made_of(out, root):
    build_small(root, NAMES)
    write_sidecar(root / "labels/people.parquet", np.arange(len(NAMES)))
    shutil.copy(root / "labels/people.parquet", root / "x.findings.parquet")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}

    with pytest.raises(ManifestError, match=r"choose another name for the manifest \(-o\)"):
        build_manifest(small_dataset(root, sidecar="x.findings.parquet"), root / out, progress=False)

    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    build_manifest(small_dataset(root), root / "small.parquet", progress=False)


def test_images_that_would_share_one_depth_map_are_a_problem_unless_no_map_is_named(root):
    names = ["x/a.jpg", "x/a.png", "c.jpg"]  # x/a.npy is whose?
    write_image(root, "x/a.png")
    rows = all_rows(build_small(root, names)[0])
    assert [row["problem_status"] for row in rows] == ["label_invalid", "label_invalid", None]
    assert "the depth map of 'x/a.png' would be another image's too" in rows[1]["problem"]
    assert [row["depth_file"] for row in rows] == [None, None, "c.npy"]
    assert [row["problem"] for row in all_rows(build_small(root, names, depth=None)[0])] == [None] * 3
