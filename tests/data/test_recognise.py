"""Files are recognised by their content, not their name; what is no file of people is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline.commands.training_data import open_label_sets
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.people import FileKind, read_people, recognise
from dto_pipeline.data.sources.relative_human import read_annotations
from dto_pipeline.data.sources.rows import LabelFileError
from dto_pipeline.data.training_labels import Part
from dto_pipeline.train.config import DataConfig
from tests.data.test_people import (
    write_annots,
    write_prediction_npz,
    write_prediction_parquet,
    write_release,
    write_truth,
)
from tests.released_files import released_annots, write_pictures, write_released


def write_relative_human(path: Path) -> Path:
    np.savez(path, annots={"a.jpg": [], "b.jpg": [{"depth_id": 1, "age": 0, "gender": -1, "kp2d": None}]})  # type: ignore[arg-type]
    return path


FILES = (
    (FileKind.CAMERAHMR, write_release),
    (FileKind.MA_HMR, write_annots),
    (FileKind.RELATIVE_HUMAN, write_relative_human),
    (FileKind.PREDICTIONS, write_prediction_npz),
    (FileKind.PREDICTIONS, write_prediction_parquet),
    (FileKind.SYNTHETIC_TRUTH, write_truth),
)


@pytest.mark.parametrize(("kind", "write"), FILES)
@pytest.mark.parametrize("name", ["val_annots.npz", "file", "labels.parquet"])
def test_the_name_of_a_file_decides_nothing(kind: FileKind, write: Any, name: str, tmp_path: Path) -> None:
    assert recognise(shutil.move(write(tmp_path / "written.npz"), tmp_path / name)) is kind


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(LabelFileError, match="a pipe, socket or device"):
        recognise(tmp_path / "pipe.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": [0]}, r"holds \['x'\]; expected imgname \(CameraHMR's labels\), image \(predictions\)"),
        (
            {"annots": {"a.jpg": [{"height": 1.8}]}},
            r"first 1 people .* have the keys \['height'\]; expected smpl_param",
        ),
        ({"annots": {}}, "first 0 people"),
        ({"annots": [1, 2]}, "expected one object"),
    ],
)
def test_what_is_no_file_of_people_is_refused_with_what_it_holds(arrays: dict, words: str, tmp_path: Path) -> None:
    held: dict[str, Any] = {k: v if isinstance(v, dict) else np.array(v) for k, v in arrays.items()}
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(LabelFileError, match=words):
        recognise(tmp_path / "a.npz")


def test_annotations_of_whom_nothing_can_be_used_are_refused_with_what_they_hold(tmp_path: Path) -> None:
    write_released(tmp_path / "a.npz", released_annots(2))
    with pytest.raises(LabelFileError, match=r"6 people of whom nothing can be used; they hold \['cam_param', 'smpl_"):
        read_annotations(tmp_path / "a.npz")
    with pytest.raises(LabelFileError, match="RelativeHuman's annotations"):
        read_people(write_relative_human(tmp_path / "b.npz"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"imgname": ["a.jpg"], "pose_cam": [[0] * 72], "shape": [[0] * 10]}, "has none of the keys .'trans_cam'"),
        ({"image": ["a.jpg"], "pose": [0]}, "missing columns .'betas', 'transl'"),
        ({"image_name": ["a.jpg"]}, "lacks .'pose'"),
    ],
)
def test_a_file_of_a_kind_that_lacks_something_says_what(arrays: dict, words: str, tmp_path: Path) -> None:
    held: dict[str, Any] = {k: np.array(v, np.str_ if "im" in k else float) for k, v in arrays.items()}
    np.savez(tmp_path / "a.npz", **held)
    with pytest.raises(LabelFileError, match=words):
        read_people(tmp_path / "a.npz")


def test_training_takes_each_kind_by_its_content_and_refuses_others_with_the_next_step(tmp_path: Path) -> None:
    def people(path: Path) -> int:
        (label_set,) = open_label_sets(DataConfig(labels=(str(path),), images=(str(tmp_path),)))
        return sum(label_set.read(piece).num_people for piece in label_set.index(0, Part("all")))

    assert people(write_annots(tmp_path / "val_annots.npz")) == 3
    assert people(write_relative_human(tmp_path / "COCO_CHMR_SMPL_OPT.npz")) == 1
    with pytest.raises(LabelFileError, match=r"CameraHMR's labels; training reads .*`dto manifest build`"):
        people(write_release(tmp_path / "train_annots.npz"))


def test_every_person_of_a_released_file_is_trained_on(tmp_path: Path) -> None:
    annots = {**released_annots(30, 3), "nobody.jpg": []}
    write_released(tmp_path / "a.npz", annots)
    (label_set,) = open_label_sets(DataConfig(labels=(str(tmp_path / "a.npz"),), images=(str(tmp_path),)))
    (piece,) = label_set.index(0, Part("accepted"))
    columns = label_set.read(piece)
    assert columns.images["image_file"].tolist() == list(annots)[:30]
    assert np.diff(columns.starts).tolist() == [3] * 30
    people = [person["smpl_param"] for crowd in annots.values() for person in crowd]
    np.testing.assert_array_equal(columns.people["pose"], np.stack([person["pose"] for person in people]))
    np.testing.assert_array_equal(columns.people["transl"], np.stack([person["trans"] for person in people]))
    assert columns.intrinsics[4].tolist() == [[60, 0, 32], [0, 60, 24], [0, 0, 1]]


def test_another_process_maps_the_copy_of_a_released_file_or_reads_the_file_itself(tmp_path: Path) -> None:
    write_released(tmp_path / "a.npz", released_annots(3, 2))
    (label_set,) = open_label_sets(DataConfig(labels=(str(tmp_path / "a.npz"),), images=(str(tmp_path),)))
    (piece,) = label_set.index(0, Part("all"))
    elsewhere = dataclasses.replace(label_set, copy=tmp_path / "gone.npz")  # type: ignore[call-arg]
    moved = dataclasses.replace(label_set, path=tmp_path / "gone.npz")  # type: ignore[call-arg]
    for other in (elsewhere, moved):
        np.testing.assert_array_equal(other.read(piece).people["pose"], label_set.read(piece).people["pose"])


def test_a_manifest_is_not_built_from_a_file_of_another_kind(tmp_path: Path) -> None:
    annots = released_annots(2)
    write_released(tmp_path / "coco-release.npz", annots)
    write_pictures(tmp_path / "images", list(annots))
    dataset = Dataset("coco", "camerahmr", "coco-release.npz", "images", tmp_path)
    with pytest.raises(LabelFileError, match=r"released DTO-Humans.*source: camerahmr; set source: ma_hmr"):
        build_manifest(dataset, tmp_path / "m.parquet", progress=False)
    report = build_manifest(dataclasses.replace(dataset, source="ma_hmr"), tmp_path / "m.parquet", progress=False)
    assert (report.images, report.persons) == (2, 6)
