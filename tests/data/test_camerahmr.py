from __future__ import annotations

import struct
import zipfile

import numpy as np
import pytest

from dto_pipeline.data.sources.camerahmr import open_camerahmr, write_release_file
from dto_pipeline.data.sources.rows import find_row_problems
from dto_pipeline.errors import DtoError
from tests.data.small_set import label_arrays, write_labels_file

NAMES = ["a.jpg", "a.jpg", "b.jpg"]
ALL = np.arange(3)


def read(root, arrays, compressed=False):
    source = open_camerahmr(write_labels_file(root, arrays, compressed))
    return source.rows(ALL)


def renamed(arrays, **names):
    return {names.get(key, key): value for key, value in arrays.items()}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_any_float_type_stored_or_compressed_are_read(tmp_path, compressed, kind):
    arrays = label_arrays(NAMES)
    given = {key: value if key == "imgname" else value.astype(kind) for key, value in arrays.items()}
    rows = read(tmp_path, given, compressed)
    assert rows.pose.dtype == rows.betas.dtype == rows.transl.dtype == np.float32
    assert rows.intrinsics.dtype == np.float64
    np.testing.assert_array_equal(rows.pose, given["pose_cam"].astype(np.float32))
    np.testing.assert_array_equal(rows.transl, given["trans_cam"].astype(np.float32))
    np.testing.assert_array_equal(rows.intrinsics, given["cam_int"])


@pytest.mark.parametrize("pose", ["pose_cam", "pose"])
@pytest.mark.parametrize("transl", ["trans_cam", "cam_t", "trans"])
def test_older_key_names_mean_the_same(tmp_path, pose, transl):
    arrays = label_arrays(NAMES)
    rows = read(tmp_path, renamed(arrays, pose_cam=pose, trans_cam=transl))
    np.testing.assert_array_equal(rows.pose, arrays["pose_cam"])
    np.testing.assert_array_equal(rows.transl, arrays["trans_cam"])


@pytest.mark.parametrize("betas", [10, 11])
def test_pose_in_joints_is_read_and_ten_betas_leave_the_kid_axis_at_zero(tmp_path, betas):
    arrays, shape = label_arrays(NAMES), np.random.default_rng(1).normal(size=(3, betas)).astype(np.float32)
    rows = read(tmp_path, {**arrays, "pose_cam": arrays["pose_cam"].reshape(3, 24, 3), "shape": shape})
    np.testing.assert_array_equal(rows.pose, arrays["pose_cam"])
    np.testing.assert_array_equal(rows.betas, np.pad(shape, ((0, 0), (0, 11 - betas))))


def test_boxes_come_from_centre_and_the_longer_side_of_scale_or_are_unknown(tmp_path):
    arrays = label_arrays(NAMES) | {"center": np.full((3, 2), 50.0)}
    for scale in (np.full(3, 0.1), np.full((3, 1), 0.1), np.array([[0.05, 0.1]] * 3)):
        np.testing.assert_allclose(read(tmp_path, {**arrays, "scale": scale}).bbox_xyxy, [[40, 40, 60, 60]] * 3)
    del arrays["scale"]
    assert np.isnan(read(tmp_path, arrays).bbox_xyxy).all()


def test_rows_come_in_the_order_asked_for_and_fortran_order_does_not_matter(tmp_path):
    arrays = label_arrays(NAMES)
    path = write_labels_file(tmp_path, {**arrays, "pose_cam": np.asfortranarray(arrays["pose_cam"])})
    source = open_camerahmr(path)
    rows = source.rows(np.array([2, 0]))
    assert source.image_names[1:3].tolist() == ["a.jpg", "b.jpg"]
    np.testing.assert_array_equal(rows.pose, arrays["pose_cam"][[2, 0]])


def test_codes_that_are_no_characters_in_a_name_are_refused_with_their_row(tmp_path):
    names = np.array(["a.jpg", "b.jpg"])
    names.view(np.uint32)[6] = 0x110000
    with pytest.raises(DtoError, match=r"imgname.*item 1 .*0x110000 is no character"):
        open_camerahmr(write_labels_file(tmp_path, {**label_arrays(["a.jpg", "b.jpg"]), "imgname": names}))


def test_image_names_may_be_bytes(tmp_path):
    arrays = label_arrays(NAMES) | {"imgname": np.array([b"a.jpg", b"\xff.jpg", "ä.jpg".encode()])}
    source = open_camerahmr(write_labels_file(tmp_path, arrays))
    assert source.image_names.tolist() == ["a.jpg", "\udcff.jpg", "ä.jpg"]


@pytest.mark.parametrize(
    ("key", "array", "found"),
    [
        ("pose_cam", np.zeros((3, 71)), r"float64 \(3, 71\); expected numbers \(3, 72\) or \(3, 24, 3\)"),
        ("shape", np.zeros((2, 10)), r"\(2, 10\); expected numbers \(3, 10\) or \(3, 11\)"),
        ("trans_cam", np.zeros(3), r"\(3,\); expected numbers \(3, 3\)"),
        ("cam_int", np.zeros((3, 3)), r"\(3, 3\); expected numbers \(3, 3, 3\)"),
        ("trans_cam", np.full((3, 3), "x"), r"<U1 \(3, 3\); expected numbers"),
        ("trans_cam", np.zeros((3, 3), complex), "complex128"),
        ("imgname", np.zeros(3), r"float64 \(3,\); expected text"),
        ("imgname", np.zeros((0,), "U3"), "at least one row"),
        ("pose_cam", np.array([[None] * 72] * 3, object), "object array"),
        ("imgname", np.array(NAMES, object), "object array"),
    ],
)
def test_a_wrong_array_is_refused_with_file_key_found_and_expected(tmp_path, key, array, found):
    path = write_labels_file(tmp_path, label_arrays(NAMES) | {key: array})
    with pytest.raises(DtoError, match=found) as caught:
        open_camerahmr(path)
    assert key in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["imgname", "pose_cam", "shape", "trans_cam", "cam_int"])
def test_a_missing_key_is_named_with_what_there_is(tmp_path, key):
    arrays = label_arrays(NAMES)
    del arrays[key]
    with pytest.raises(DtoError, match=f"{key}.*it holds"):
        open_camerahmr(write_labels_file(tmp_path, arrays))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_is_refused_or_read_right(tmp_path, compressed):
    arrays = label_arrays(NAMES)
    path = write_labels_file(tmp_path, arrays, compressed)
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(DtoError, match=r"npz|array"):
            open_camerahmr(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_promises_more_than_the_member_holds_is_refused(tmp_path, method):
    path = write_labels_file(tmp_path, label_arrays(NAMES))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 72), }"
    short = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 100
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in (members | {"pose_cam.npy": short}).items():
            new.writestr(name, data)
    with pytest.raises(DtoError, match="pose_cam"):
        open_camerahmr(path)


def test_row_problems_name_the_first_fault_of_each_person():
    good = label_arrays(["x"] * 6)
    pose, betas, transl = good["pose_cam"], good["shape"], good["trans_cam"]
    pose[1, 70] = np.nan
    betas[2, 3] = np.inf
    transl[3, 0] = np.nan
    transl[4, 2] = 0
    transl[5, 2] = -1
    assert find_row_problems(pose, betas, transl).tolist() == [0, 1, 2, 3, 4, 4]


def test_people_written_are_the_people_read_and_equal_people_give_equal_bytes(tmp_path):
    rows = read(tmp_path, label_arrays(NAMES))
    for name in ("a.npz", "b.npz"):
        write_release_file(tmp_path / name, np.array(NAMES), vars(rows) | {"keypoints": np.zeros((3, 44, 3))})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    labels = open_camerahmr(tmp_path / "a.npz")
    assert labels.image_names.tolist() == NAMES
    for name in ("pose", "betas", "transl", "bbox_xyxy", "intrinsics"):
        np.testing.assert_allclose(getattr(labels.rows(ALL), name), getattr(rows, name), rtol=1e-4)


def test_a_member_with_a_path_in_its_name_is_refused(tmp_path):
    path = write_labels_file(tmp_path, label_arrays(NAMES))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../x.npy", b"")
    with pytest.raises(DtoError, match="refuses the member"):
        open_camerahmr(path)
