"""People of every layout come out the same; what cannot be read says so, and broken people stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.data.people import People, read_people
from dto_pipeline.data.sources.camerahmr import write_release_file
from dto_pipeline.data.sources.rows import LabelFileError
from tests.data.test_annots import one

NAMES = np.array(["a/1.jpg", "a/2.jpg", "a/1.jpg"])
CAMERA = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])


def numbers() -> dict[str, Any]:
    rng = np.random.default_rng(4)
    return {
        "pose": rng.normal(0, 0.3, (3, 72)).astype(np.float32),
        "betas": np.pad(rng.normal(0, 1, (3, 10)), ((0, 0), (0, 1))).astype(np.float32),
        "transl": np.array([[0, 0, 4.0], [1, 0, 5], [-1, 0, 6]], np.float32),
    }


def write_prediction_npz(path: Path) -> Path:
    np.savez(path, image=NAMES, intrinsics=np.repeat(CAMERA[None], 3, 0), **numbers())
    return path


def write_prediction_parquet(path: Path) -> Path:
    columns = {name: values.tolist() for name, values in numbers().items()}
    pq.write_table(pa.table({"image": NAMES.tolist(), "intrinsics": [CAMERA.ravel().tolist()] * 3, **columns}), path)
    return path


def write_release(path: Path) -> Path:
    boxes = np.tile(np.array([10, 10, 60, 110], np.float32), (3, 1))
    write_release_file(path, NAMES, {**numbers(), "bbox_xyxy": boxes, "intrinsics": np.repeat(CAMERA[None], 3, 0)})
    return path


def write_annots(path: Path) -> Path:
    camera = {"focal": np.array([500, 500], np.float32), "princpt": np.array([320, 240], np.float32)}
    annots: dict[str, list] = {str(name): [] for name in NAMES}
    for row, name in enumerate(NAMES):
        pose, betas, transl = (values[row] for values in numbers().values())
        body = {"shape": betas, "pose": pose, "trans": transl}
        annots[str(name)].append({"smpl_param": body, "cam_param": camera})
    np.savez(path, annots=np.array(annots, dtype=object))
    return path


HEIGHTS = np.array([1.6, 1.7, 1.8])  # that only a truth has besides the shape [m]


def write_truth(path: Path) -> Path:
    size = np.tile([480, 640], (3, 1))
    cameras = np.repeat(CAMERA[None], 3, 0)
    np.savez(
        path, allow_pickle=False, image_name=NAMES, intrinsics=cameras, image_size=size, height=HEIGHTS, **numbers()
    )
    return path


WRITERS = (write_prediction_npz, write_prediction_parquet, write_release, write_annots, write_truth)


def check(people: People) -> None:
    assert people.images.tolist() == ["a/1.jpg", "a/2.jpg"]
    assert people.owner.tolist() == [0, 0, 1]
    for name, values in numbers().items():
        assert np.allclose(getattr(people, name), values[[0, 2, 1]]), name
    assert np.allclose(people.intrinsics, CAMERA)
    assert people.usable.all()


@pytest.mark.parametrize("write", WRITERS)
def test_every_layout_gives_the_same_people_ordered_by_image(write: Callable[[Path], Path], tmp_path: Path) -> None:
    check(read_people(write(tmp_path / "people.file.npz")))


def test_label_rows_are_positions_in_the_file(tmp_path: Path) -> None:
    assert read_people(write_release(tmp_path / "r.npz")).row.tolist() == [0, 2, 1]


def test_the_truth_is_found_in_its_folder_with_the_size_of_its_images(tmp_path: Path) -> None:
    write_truth(tmp_path / "truth.npz")
    assert read_people(tmp_path).size.tolist() == [[480, 640], [480, 640]]


def test_people_not_as_documented_are_kept_and_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", annots=np.array({"x.jpg": [one(), 7], "none.jpg": []}, dtype=object))
    people = read_people(tmp_path / "a.npz")
    assert people.usable.tolist() == [True, False]
    assert people.images.tolist() == ["x.jpg", "none.jpg"]
    assert ["person 1" in text for text in people.problems] == [True]


def test_what_is_no_file_of_people_says_what_is(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.npz").write_bytes(write_release(tmp_path / "r.npz").read_bytes()[:400])
    np.savez(tmp_path / "truth.npz", image_name=NAMES)
    for name, words in (
        ("nowhere.npz", "does not exist"),
        ("text.npz", "begins with b'hell'"),
        ("cut.npz", r"cut\.npz"),
        ("truth.npz", "lacks .'pose'"),
    ):
        with pytest.raises(LabelFileError, match=words):
            read_people(tmp_path / name)
