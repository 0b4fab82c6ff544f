"""What a manifest may start from besides CameraHMR's files: our own labels, predictions, RelativeHuman."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dto_pipeline.collate import keep_labels
from dto_pipeline.data.labels import build_label_table, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.scenes import read_label_scenes
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import LabelFileError, SourceOptions
from dto_pipeline.errors import DtoError
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus
from tests.data.small_set import HEIGHT, WIDTH, all_rows, read_findings, small_dataset, write_image
from tests.memory_store import upload

AFTER = SourceOptions("after")


def placed_scene(name, people, seed):
    """An image after a run: everybody moved, one shape coefficient changed."""
    random = np.random.default_rng(seed)

    def some(*shape):
        return random.uniform(1, 2, (people, *shape)).astype(np.float32)

    scene = Scene(
        image_id=f"small/{name}",
        subset="small",
        image_path=name,
        width=WIDTH,
        height=HEIGHT,
        intrinsics=np.array([[40, 0, WIDTH / 2], [0, 40, HEIGHT / 2], [0, 0, 1.0]]),
        pose=some(72),
        betas=some(11),
        transl=some(3),
        source_row=np.arange(people),
        bbox_xyxy=some(4).cumsum(axis=1),  # left, top, and farther right and down
        det_score=some(),
        age_years=some(),
        male_prob=some() / 2,
        person_problem=[None] * people,
    )
    betas, index = scene.betas.copy(), np.where(np.arange(people) % 2, 9, -1).astype(np.int32)
    betas[index >= 0, index[index >= 0]] += 1
    moved = replace(keep_labels(scene), betas=betas, transl=scene.transl * 2, beta_index=index)
    return replace(moved, status=ImageStatus.OPTIMIZED, person_status=[PersonStatus.MOVED] * people)


def write_run(root):
    """Two label shards in a run's folder; the images they are about."""
    (root / "run/labels").mkdir(parents=True)
    shards = [[placed_scene("a.jpg", 3, 0), placed_scene("none.jpg", 0, 1)], [placed_scene("b.jpg", 2, 2)]]
    for number, placed in enumerate(shards):
        write_label_shard(build_label_table(placed), root / f"run/labels/shard-{number:05d}.parquet", {})
    for name in ("a.jpg", "b.jpg"):
        write_image(root, name)
    return [item for placed in shards for item in placed]


def build(root, **changes):
    report = build_manifest(small_dataset(root, **changes), root / "m.parquet", progress=False)
    return all_rows(Manifest.open(root / "m.parquet")), report


@pytest.mark.parametrize("where", ["run", "run/labels"])
@pytest.mark.parametrize("values", ["after", "before"])
def test_another_runs_labels_start_a_manifest_with_either_values(tmp_path, values, where):
    placed = write_run(tmp_path)
    rows, report = build(tmp_path, source="labels", labels=where, label_values=values)
    assert [row["image_path"] for row in rows] == ["a.jpg", "b.jpg"]
    assert [row["attribute_origin"] for row in rows] == ["labels", "labels"]
    assert report.persons == 5
    (origin,) = json.loads(Manifest.open(tmp_path / "m.parquet").metadata["label_files"])  # in every label's footer
    sizes = [file.stat().st_size for file in (tmp_path / "run/labels").iterdir()]
    assert (origin["file"], origin["bytes"]) == (where, sum(sizes))
    for row, item in zip(rows, [placed[0], placed[2]], strict=True):
        wanted = item if values == "after" else item.scene
        for column, numbers in (("pose", item.scene.pose), ("betas", wanted.betas), ("transl", wanted.transl)):
            np.testing.assert_array_equal([p[column] for p in row["persons"]], numbers)
        for column in ("age_years", "male_prob", "det_score", "bbox_xyxy"):
            np.testing.assert_array_equal([p[column] for p in row["persons"]], getattr(item.scene, column))
        assert (row["fx"], row["cx"]) == (40, WIDTH / 2)


def test_labels_made_on_images_of_another_size_are_not_of_these_whatever_the_principal_point(tmp_path):
    write_run(tmp_path)
    write_image(tmp_path, "b.jpg", WIDTH // 2, HEIGHT // 2)
    rows, _ = build(tmp_path, source="labels", labels="run", principal_point="free")
    assert [row["problem_status"] for row in rows] == [None, "label_invalid"]
    assert f"is {WIDTH // 2} x {HEIGHT // 2}; its labels were made on another size" in rows[1]["problem"]


def test_label_files_of_an_object_store_are_one_entry_of_the_manifest_too(tmp_path):
    """A hundred thousand bytes of names in each of a thousand label files, and a run that looked at them one by one."""
    write_run(tmp_path)
    upload(tmp_path / "run", "start/run")
    build_manifest(
        small_dataset(tmp_path, source="labels", labels="x", places={"labels": "memory://start/run"}),
        tmp_path / "m.parquet",
        progress=False,
    )
    (origin,) = json.loads(Manifest.open(tmp_path / "m.parquet").metadata["label_files"])
    assert origin["file"] == "run"


def test_one_label_file_is_enough_and_others_are_refused(tmp_path):
    write_run(tmp_path)
    shard = tmp_path / "run/labels/shard-00001.parquet"
    source = SOURCES["labels"](shard, AFTER)
    assert source.num_rows == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(DtoError, match="holds no label file"):
        SOURCES["labels"](tmp_path / "empty", AFTER)
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DtoError, match="shard-00001"):
        SOURCES["labels"](tmp_path / "run", AFTER)
    pq.write_table(pa.table({"a": [1]}), shard)
    with pytest.raises(DtoError, match="dto-labels/1"):
        SOURCES["labels"](shard, AFTER)


def test_label_files_without_people_are_refused(tmp_path):
    write_label_shard(build_label_table([placed_scene("n.jpg", 0, 0)]), tmp_path / "x.parquet", {})
    with pytest.raises(LabelFileError, match="no label row"):
        SOURCES["labels"](tmp_path / "x.parquet", AFTER)


def write_predictions(root, names, **changes):
    random, people = np.random.default_rng(0), len(names)
    arrays: dict[str, Any] = {
        "image": np.array(names),
        "pose": random.normal(size=(people, 72)).astype(np.float32),
        "betas": random.normal(size=(people, 10)),
        "transl": random.uniform(1, 5, (people, 3)),
        "focal": np.full(people, 40.0),
        "det_score": np.linspace(0, 1, people),
    }
    arrays = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(root / "p.npz", **arrays)
    return arrays


def test_a_plain_folder_and_any_networks_predictions_make_a_manifest(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path, name)
    write_image(tmp_path, "b.jpg", width=2 * WIDTH)
    arrays = write_predictions(tmp_path, ["a.jpg", "b.jpg", "a.jpg"])
    rows, report = build(tmp_path, source="predictions", labels="p.npz")
    assert [(row["fx"], row["cx"], row["cy"]) for row in rows] == [
        (40, WIDTH / 2, HEIGHT / 2),
        (40, WIDTH, HEIGHT / 2),
    ]
    assert [row["problem"] for row in rows] == [None, None]
    scores = {p["source_row"]: p["det_score"] for row in rows for p in row["persons"]}
    np.testing.assert_allclose([scores[row] for row in range(3)], arrays["det_score"])
    assert list(report.notes.values()) == [3]  # their principal point is the image's centre


def test_predictions_without_any_camera_are_rows_with_a_problem(tmp_path):
    write_image(tmp_path, "a.jpg")
    write_predictions(tmp_path, ["a.jpg"], focal=None)
    rows, report = build(tmp_path, source="predictions", labels="p.npz")
    assert rows[0]["problem_status"] == "label_invalid"
    assert "intrinsics are not finite" in rows[0]["problem"]
    assert report.image_problems == {"label_invalid": 1}


def annotate(root, *names):
    person: dict[str, Any] = {"kp2d": None, "depth_id": 0, "age": 2, "gender": 1, "bbox": [0, 0, 9, 9]}
    annots: Any = {name: [person] for name in names}
    np.savez(root / "val_annots.npz", annots=annots)


def test_relative_human_is_for_evaluation_unless_somebody_predicted_its_people(tmp_path):
    annotate(tmp_path, "a.jpg")
    with pytest.raises(LabelFileError, match=r"no bodies and no cameras.*predictions"):
        build(tmp_path, source="relative_human", labels="val_annots.npz")


def test_relative_human_takes_predicted_people_and_nothing_annotated(tmp_path):
    annotate(tmp_path, "a.jpg", "unseen.jpg")
    for name in ("a.jpg", "c.jpg"):
        write_image(tmp_path, name)
    write_predictions(tmp_path, ["a.jpg", "a.jpg", "c.jpg"])
    rows, report = build(tmp_path, source="relative_human", labels="val_annots.npz", predictions="p.npz")
    assert [len(row["persons"]) for row in rows] == [2, 1]
    assert all(np.isnan(p["age_years"]) and np.isnan(p["male_prob"]) for row in rows for p in row["persons"])
    reasons = {row["image"]: row["reason"] for row in read_findings(tmp_path / "m.parquet").to_pylist()}
    assert "without a predicted person" in reasons["unseen.jpg"]
    assert "not annotated" in reasons["c.jpg"]
    assert report.findings["source"] == 2


def test_relative_human_files_of_another_kind_are_refused(tmp_path):
    write_predictions(tmp_path, ["a.jpg"])
    options = SourceOptions(predictions=tmp_path / "p.npz")
    with pytest.raises(LabelFileError, match="no such array"):
        SOURCES["relative_human"](tmp_path / "p.npz", options)
    (tmp_path / "x.npz").write_bytes(b"text")
    with pytest.raises(DtoError, match=r"x\.npz"):
        SOURCES["relative_human"](tmp_path / "x.npz", options)


@pytest.mark.parametrize("source", ["predictions", "relative_human"])
def test_predictions_that_name_a_person_twice_keep_the_better_one(tmp_path, source):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path, name)
    once = write_predictions(tmp_path, ["a.jpg", "b.jpg"])
    noise = np.random.default_rng(1).normal(0, 0.01, (1, 72))
    arrays: dict[str, Any] = {name: np.concatenate([values, values[:1]]) for name, values in once.items()}
    arrays["pose"][2:] += noise
    arrays["det_score"] = np.array([0.5, 0.6, 0.9])
    write_predictions(tmp_path, [], **arrays)
    places = {"labels": "p.npz"} if source == "predictions" else {"labels": "val_annots.npz", "predictions": "p.npz"}
    annotate(tmp_path, "a.jpg", "b.jpg")
    _, report = build(tmp_path, source=source, **places)
    assert report.person_problems == {"duplicate, the same person as another label row of the image": 1}
    scenes = read_label_scenes(Manifest.open(tmp_path / "m.parquet").read_shard(0))
    assert [scene.person_problem for scene in scenes] == [
        [(PersonStatus.DUPLICATE, "the same person as person 1 (label row 2) of this image"), None],
        [None],
    ]
