"""Reading files of predicted people."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.data.inert_pickle import BrokenPickle
from dto_pipeline.data.npz import open_member
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.predictions import KEYPOINT_ORDERS, open_predictions, order_keypoints
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.data.sources.sidecar import Sidecar
from dto_pipeline.errors import DtoError
from tests.data.prediction_files import predicted_people, write_npz, write_parquet

COUNT = 7
WRITERS = {"npz": write_npz, "parquet": write_parquet}
both_formats = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def read_all(path):
    file = open_predictions(path)
    return file.image_names, file.rows(np.arange(file.num_rows))


@both_formats
def test_every_column_comes_back(tmp_path, write):
    people = predicted_people(COUNT)
    names, rows = read_all(write(tmp_path / "p", people))
    assert names.tolist() == people["image"].tolist()
    np.testing.assert_array_equal(rows.pose, people["pose"])
    np.testing.assert_array_equal(rows.betas[:, :10], people["betas"])
    assert not rows.betas[:, 10].any()
    for name in ("transl", "intrinsics", "bbox_xyxy"):
        np.testing.assert_array_equal(getattr(rows, name), people[name])
    for name in ("det_score", "age_years", "male_prob"):
        np.testing.assert_array_equal(getattr(rows.seen, name), people[name])


HUGE = {  # column -> header of one that unpacks to 64 MiB of zeros
    "det_score": ("<f4", (1 << 24,)),  # more rows than people
    "image": (f"<U{1 << 20}", (16,)),  # longer than any name
    "mask_rle": (f"|S{(1 << 26) // COUNT}", (COUNT,)),  # longer than any mask
}


@pytest.mark.parametrize("column", HUGE)
def test_a_small_file_that_unpacks_to_what_no_people_need_is_refused_unread(tmp_path, column):
    path, (kind, shape) = tmp_path / "p", HUGE[column]
    people = {name: values for name, values in predicted_people(COUNT).items() if name != column}
    with (
        zipfile.ZipFile(write_npz(path, people), "a") as archive,
        open_member(archive, column, np.dtype(kind), shape, packed=True) as stream,
    ):
        for _ in range(64):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 17
    assert refuse(path, LabelFileError, f"{column}.*expected") < 1 << 23


def test_a_header_longer_than_any_is_refused_unread(tmp_path):
    path = write_npz(tmp_path / "p", {name: v for name, v in predicted_people(COUNT).items() if name != "det_score"})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("det_score.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 26) + b" " * (1 << 26))
    assert refuse(path, BrokenPickle, "det_score.*header of 67108864 bytes") < 1 << 23


def refuse(path, error, match):
    """Bytes of memory used until a file is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match):
            open_predictions(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@both_formats
def test_rows_come_in_the_order_asked_for(tmp_path, write):
    people = predicted_people(COUNT)
    file = open_predictions(write(tmp_path / "p", people))
    np.testing.assert_array_equal(file.rows(np.array([5, 0, 5])).transl, people["transl"][[5, 0, 5]])
    assert file.rows(np.array([], dtype=np.int64)).pose.shape == (0, 72)


@both_formats
def test_absent_columns_are_unknown(tmp_path, write):
    people = {name: predicted_people(COUNT)[name] for name in ("image", "pose", "betas", "transl")}
    _, rows = read_all(write(tmp_path / "p", people))
    assert np.isnan(rows.intrinsics).all()
    assert np.isnan(rows.bbox_xyxy).all()
    assert np.isnan(rows.seen.det_score).all()
    assert rows.seen.mask_rle.null_count == COUNT
    assert rows.keypoints is None


@both_formats
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_a_focal_length_alone_leaves_the_principal_point_open(tmp_path, write, axes):
    people = {name: predicted_people(COUNT)[name] for name in ("image", "pose", "betas", "transl")}
    people["focal"] = np.full((COUNT, axes)[: 1 + (axes > 0)], 500.0)
    camera = read_all(write(tmp_path / "p", people))[1].intrinsics[0]
    assert (camera[0, 0], camera[1, 1], camera[2, 2], camera[0, 1]) == (500, 500, 1, 0)
    assert np.isnan(camera[:2, 2]).all()


@both_formats
@pytest.mark.parametrize("joints", KEYPOINT_ORDERS)
def test_keypoints_come_in_the_order_of_the_bodys_joints(tmp_path, write, joints):
    people = predicted_people(COUNT)
    people["keypoints"] = np.random.default_rng(1).uniform(size=(COUNT, joints, 3)).astype(np.float32)
    points = order_keypoints(read_all(write(tmp_path / "p", people))[1].keypoints, COUNT)
    order = np.array(KEYPOINT_ORDERS[joints])
    np.testing.assert_array_equal(points[:, order], people["keypoints"][:, : order.size])
    assert not np.delete(points, order, axis=1).any()


def test_the_left_knee_of_coco_and_openpose_is_the_bodys_left_knee():
    assert KEYPOINT_ORDERS[17][13] == KEYPOINT_ORDERS[25][13] == KEYPOINT_ORDERS[44][13] == 4


@both_formats
def test_a_keypoint_that_is_not_finite_is_unknown(tmp_path, write):
    people = predicted_people(COUNT)
    people["keypoints"][2, 0, 1] = np.nan
    points = order_keypoints(read_all(write(tmp_path / "p", people))[1].keypoints, COUNT)
    assert np.isfinite(points).all()
    assert points[2, 24, 2] == 0


@both_formats
def test_masks_come_back_and_empty_ones_are_none(tmp_path, write):
    people = predicted_people(3)
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    people["mask_rle"] = np.array([encode_rle(mask), b"", encode_rle(~mask)])
    people["mask_height"], people["mask_width"] = np.array([3, 0, 3]), np.array([4, 0, 4])
    seen = read_all(write(tmp_path / "p", people))[1].seen
    assert seen.mask_rle.to_pylist() == [encode_rle(mask), None, encode_rle(~mask)]
    assert seen.mask_height.tolist() == [3, 0, 3]
    assert not seen.mask_damaged.any()


def test_nulls_of_parquet_are_unknown_even_where_a_whole_row_group_has_none(tmp_path):
    columns = pq.read_table(write_parquet(tmp_path / "p", predicted_people(6))).to_pydict()
    columns["keypoints"] = [None, None, *columns["keypoints"][2:4], None, None]
    columns["pose"][0] = None
    pq.write_table(pa.table(columns), tmp_path / "p", row_group_size=2)
    rows = read_all(tmp_path / "p")[1]
    assert (rows.keypoints[:, :, 2].max(axis=1) > 0).tolist() == [False, False, True, True, False, False]
    assert np.isnan(rows.pose).any(axis=1).tolist() == [True] + [False] * 5


@both_formats
@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("pose", np.zeros((COUNT, 71)), "pose"),
        ("transl", np.zeros((COUNT, 4)), "transl"),
        ("keypoints", np.zeros((COUNT, 18, 3)), "keypoints"),
        ("scores", np.zeros(COUNT), "unknown columns"),
        ("det_score", np.array(["a"] * COUNT), None),
    ],
)
def test_columns_of_a_wrong_name_shape_or_type_are_refused(tmp_path, write, column, values, why):
    with pytest.raises(DtoError, match=why):
        open_predictions(write(tmp_path / "p", {**predicted_people(COUNT), column: values}))


def test_the_index_of_a_pandas_table_is_refused_with_how_to_leave_it_out(tmp_path):
    path = write_parquet(tmp_path / "p", {**predicted_people(COUNT), "__index_level_0__": np.arange(COUNT)})
    for read in (open_predictions, lambda path: Sidecar(path, COUNT)):
        with pytest.raises(DtoError, match=r"p: column '__index_level_0__' is .* to_parquet\(index=False\)"):
            read(path)


def test_a_missing_column_is_named_and_object_arrays_are_refused_unopened(tmp_path):
    people = predicted_people(COUNT)
    objects = {**people, "mask_rle": np.array([b"", None] * 3 + [b""], dtype=object)}
    with pytest.raises(DtoError, match="object array"):
        open_predictions(write_npz(tmp_path / "p.npz", objects))
    del people["betas"]
    for write in WRITERS.values():
        with pytest.raises(DtoError, match=r"missing columns \['betas'\]"):
            open_predictions(write(tmp_path / "p", people))


@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1 but no more", b"PK\x03\x04 cut"])
def test_files_that_are_neither_npz_nor_parquet_are_refused(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(DtoError, match="p"):
        open_predictions(tmp_path / "p")
    with pytest.raises(DtoError, match="cannot be opened"):
        open_predictions(tmp_path / "nowhere")


def test_rows_of_one_column_in_different_lengths_are_refused(tmp_path):
    columns = pq.read_table(write_parquet(tmp_path / "p", predicted_people(3))).to_pydict()
    columns["betas"] = [[0.0] * 10, [0.0] * 11, [0.0] * 10]
    pq.write_table(pa.table(columns), tmp_path / "p")
    with pytest.raises(DtoError, match="in every row"):
        open_predictions(tmp_path / "p")
