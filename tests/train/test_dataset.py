"""Batches from label files and photographs: complete, reproducible, bounded, unimpressed by broken images."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.commands.training_data import open_label_sets
from dto_pipeline.data.exports.formats import export_labels
from dto_pipeline.data.exports.job import Selection
from dto_pipeline.data.label_files import find_label_files, flatten_table
from dto_pipeline.data.labels import LabelsError, read_labels
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.training_labels import ParquetSet
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import read_run_labels
from dto_pipeline.status import UnusableImage
from dto_pipeline.train.augment import Draw, draw_variation, resize
from dto_pipeline.train.checkpoint import TrainError
from dto_pipeline.train.config import AugmentConfig, DataConfig, without_augmentation
from dto_pipeline.train.dataset import (
    ReadItems,
    Sample,
    TrainBatch,
    TrainingData,
    TrainingImages,
    blank_sample,
    collate_samples,
)
from dto_pipeline.train.targets import ImageLabels, Rules, Seen, build_labels, see_people, square_pixels
from tests.released_files import released_annots
from tests.run.chaos import tiny_config
from tests.tars import write_tar
from tests.tiny_dataset import TinyDataset, write_tiny_dataset
from tests.train.label_examples import random_columns, random_labels

UNREADABLE = {"tiny/000001.jpg", "tiny/000002.jpg"}  # missing, truncated


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> TinyDataset:
    """Nine images in three shards, four of them spoilt."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body)


@pytest.fixture(scope="module")
def run_dir(tiny: TinyDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished") / "run"
    run_pipeline(tiny.manifest, path, tiny_config(), progress=False)
    return path


def config(labels: Path, **changes: Any) -> DataConfig:
    options = DataConfig(labels=(str(labels),), select="all", input_size=112, workers=0, batch_images=2)
    return dataclasses.replace(options, **changes)


def open_data(
    options: DataConfig, body: BodyModel, rank: int = 0, world: int = 1, augment: bool = True
) -> TrainingData:
    varied = AugmentConfig() if augment else without_augmentation(AugmentConfig())
    images = TrainingImages(open_label_sets(options), body, options, varied)
    return TrainingData(images, rank, world)


def seen_ids(batches: list[TrainBatch]) -> list[str]:
    return [key for batch in batches for key in batch.image_ids]


def skipped_ids(batches: list[TrainBatch]) -> list[str]:
    return [text.split(":")[0] for batch in batches for text in batch.skipped]


def test_an_epoch_shows_every_image_once_and_names_those_that_cannot_be_read(run_dir: Path, body: BodyModel) -> None:
    batches = list(open_data(config(run_dir), body).epoch(0))
    assert set(skipped_ids(batches)) == UNREADABLE
    assert sorted([*seen_ids(batches), *skipped_ids(batches)]) == [f"tiny/00000{i}.jpg" for i in range(9)]
    assert all("000001.jpg does not exist" in t for b in batches for t in b.skipped if "000001" in t)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_reading_processes_change_no_batch(run_dir: Path, body: BodyModel, workers: int) -> None:
    options = config(run_dir)
    for rank in range(2):
        one = list(open_data(options, body, rank, 2).epoch(3))
        other = list(open_data(dataclasses.replace(options, workers=workers), body, rank, 2).epoch(3))
        assert [b.image_ids for b in one] == [b.image_ids for b in other]
        for first, second in zip(one, other, strict=True):
            torch.testing.assert_close(first.images, second.images, rtol=0, atol=0)
            torch.testing.assert_close(vars(first.targets), vars(second.targets), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_early_does_not_spill_into_the_next(
    run_dir: Path, body: BodyModel, workers: int
) -> None:
    data = open_data(config(run_dir, workers=workers), body)
    left = data.epoch(0)
    next(left)
    next(left)
    again = [batch.image_ids for batch in data.epoch(1)]
    assert again == [batch.image_ids for batch in open_data(config(run_dir), body).epoch(1)]


def test_epochs_differ_in_order_and_augmentation(run_dir: Path, body: BodyModel) -> None:
    data = open_data(config(run_dir), body)
    first, second = list(data.epoch(0)), list(data.epoch(1))
    assert seen_ids(first) != seen_ids(second)
    cameras = [{k: b.targets.intrinsics[i] for b in e for i, k in enumerate(b.image_ids)} for e in (first, second)]
    assert not torch.allclose(cameras[0]["tiny/000000.jpg"], cameras[1]["tiny/000000.jpg"])


def test_without_augmentation_labels_are_those_of_the_run(run_dir: Path, body: BodyModel) -> None:
    columns = flatten_table(read_labels(*find_label_files(run_dir)))
    row = columns.images["image_id"].tolist().index("tiny/000003.jpg")
    part = slice(columns.starts[row], columns.starts[row + 1])
    batches = list(open_data(config(run_dir), body, augment=False).epoch(0))
    batch = next(b for b in batches if "tiny/000003.jpg" in b.image_ids)
    i = batch.image_ids.index("tiny/000003.jpg")
    targets = batch.targets
    own = targets.image == i
    np.testing.assert_allclose(targets.transl[own], columns.people["transl"][part], atol=1e-6)
    np.testing.assert_allclose(targets.poses[own], columns.people["pose"][part], atol=1e-6)
    joints = body.joints(targets.poses[own], targets.betas[own], targets.transl[own])
    torch.testing.assert_close(targets.j3ds[own], joints)
    scale = 112 / max(columns.images["width"][row], columns.images["height"][row])
    camera = np.diag([scale, scale, 1]) @ columns.intrinsics[row]
    np.testing.assert_allclose(batch.targets.intrinsics[i], camera, rtol=1e-6)
    seen = joints.double().numpy() @ camera.T
    places = seen[..., :2] / seen[..., 2:]
    counted = targets.j2ds_mask[own].numpy()
    assert counted.any()
    np.testing.assert_allclose(targets.j2ds[own].numpy()[counted], places[counted], atol=1e-3)
    width, height = 112, int(112 * 120 / 160)
    inside = ((places >= 0) & (places < (width, height))).all(-1)
    np.testing.assert_array_equal(counted, np.repeat(inside[..., None], 2, -1))


def test_a_person_with_a_broken_label_is_present_without_a_body(run_dir: Path, body: BodyModel) -> None:
    batches = list(open_data(config(run_dir), body, augment=False).epoch(0))
    batch = next(b for b in batches if "tiny/000005.jpg" in b.image_ids)
    own = batch.targets.image == batch.image_ids.index("tiny/000005.jpg")
    assert (~batch.targets.has_body[own]).sum() == 1
    assert batch.targets.poses.isfinite().all()
    assert batch.targets.boxes.isfinite().all()
    assert not batch.targets.mapped[batch.image_ids.index("tiny/000005.jpg")]  # its cells are not known


def test_what_is_pinned_for_a_gpu_is_the_batch_not_yet_varied(
    run_dir: Path, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    images = open_data(config(run_dir), body).images
    batch = ReadItems(images.__getitems__([(0, 0, 3), (0, 1, 4)])).pin_memory()
    assert all(any(image is one for one in pinned) for image in batch.images)
    assert all(image.dtype == torch.uint8 for image in batch.images)
    assert len(batch.frames) == len(batch.images) == 2
    assert batch.to("cpu").frames == ()


def test_people_of_several_images_stand_one_after_the_other(run_dir: Path, body: BodyModel) -> None:
    for read in open_data(config(run_dir, batch_images=4), body).epoch(0):
        batch = read.to("cpu")
        targets, images = batch.targets, len(batch.images)
        assert (targets.image.diff() >= 0).all()
        assert len(targets.image) == len(targets.boxes) == len(targets.z_covariance)
        sizes = [image.shape[1:] for image in batch.images]
        assert all(max(size) in (112, 56) for size in sizes)
        cells = [2 * -(-h // 56) * 2 * -(-w // 56) for h, w in sizes]
        assert torch.bincount(targets.cell_image, minlength=images).tolist() == cells
        assert batch.to("cpu").skipped == batch.skipped


def test_a_batch_of_which_nothing_can_be_read_is_a_black_image_without_people(body: BodyModel) -> None:
    rules = Rules(body, DataConfig(input_size=112), AugmentConfig())
    batch = collate_samples(["a: gone", "b: torn", blank_sample(rules)])
    assert batch.skipped == ("a: gone", "b: torn")
    assert batch.images[0].shape == (3, 56, 112)
    assert batch.image_ids == ("",)
    assert len(batch.targets.image) == 0
    assert batch.targets.image_focals.tolist() == [0]


def test_a_photograph_of_another_size_than_was_labelled_is_left_out(
    tiny: TinyDataset, run_dir: Path, body: BodyModel, tmp_path: Path
) -> None:
    tall, wide = (tiny.manifest.parent / "images" / f"00000{i}.jpg" for i in (5, 0))
    for image in range(9):
        (tmp_path / f"00000{image}.jpg").write_bytes((tall if image == 3 else wide).read_bytes())
    batches = list(open_data(config(run_dir, images=(str(tmp_path),)), body).epoch(0))
    reasons = [text for batch in batches for text in batch.skipped if "000003" in text]
    assert reasons == ["tiny/000003.jpg: the image has 120 x 160 pixels, its labels 160 x 120"]


def test_images_in_tars_are_read_in_place_by_several_processes(
    tiny: TinyDataset, body: BodyModel, tmp_path: Path
) -> None:
    for folder in ("labels", "depth"):
        (tmp_path / folder).symlink_to(tiny.manifest.parent / folder)
    files = {path.name: path.read_bytes() for path in sorted((tiny.manifest.parent / "images").iterdir())}
    write_tar(tmp_path / "tars/0.tar", files)
    dataset = dataclasses.replace(tiny.dataset, root=tmp_path, images="tars", images_in="tars")
    build_manifest(dataset, tmp_path / "tiny.parquet", progress=False)
    run_pipeline(tmp_path / "tiny.parquet", tmp_path / "run", tiny_config(), progress=False)
    batches = list(open_data(config(tmp_path / "run", workers=2), body).epoch(0))
    assert set(skipped_ids(batches)) == UNREADABLE
    assert len([key for key in seen_ids(batches) if key]) == 7


def test_an_export_trains_as_its_run_does(tiny: TinyDataset, run_dir: Path, body: BodyModel, tmp_path: Path) -> None:
    export_labels([read_run_labels(run_dir)], "parquet", tmp_path / "export", Selection(), progress=False)
    images = str(tiny.manifest.parent / "images")
    batches = list(open_data(config(tmp_path / "export", images=(images,)), body).epoch(0))
    assert sorted([*seen_ids(batches), *skipped_ids(batches)]) == [f"tiny/00000{i}.jpg" for i in range(9)]
    with pytest.raises(LabelsError, match="nothing says where its photographs are"):
        open_data(config(tmp_path / "export"), body)


def test_subsets_come_with_their_weights(run_dir: Path, body: BodyModel, tmp_path: Path) -> None:
    again = shutil.copytree(run_dir, tmp_path / "again")
    options = dataclasses.replace(config(run_dir), labels=(str(run_dir), str(again)), weights=(1.0, 2.0))
    batches = list(open_data(options, body).epoch(0))
    counts = {key: seen_ids(batches).count(key) for key in set(seen_ids(batches)) if key}
    assert set(counts.values()) == {3}


def test_labels_named_twice_by_whatever_path_are_refused(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run_dir)
    (file,) = [str(path) for path in (run_dir / "labels").glob("shard-00000*")]
    images = ("", str(tmp_path))
    for other in (f"{run_dir}/", run_dir / ".." / run_dir.name, tmp_path / "link", file, f"file://{run_dir}"):
        options = dataclasses.replace(config(run_dir), labels=(str(run_dir), str(other)), images=images)
        with pytest.raises(DtoError, match=r"twice \(.* and .*\): name it once; data\.weights says"):
            open_label_sets(options)


def test_held_out_images_are_never_trained_on(run_dir: Path, body: BodyModel) -> None:
    options = config(run_dir, holdout=0.4)
    sets = open_label_sets(options)
    sides = [TrainingImages(sets, body, options, held_out=side) for side in (False, True)]
    epochs = [list(TrainingData(side).epoch(0)) for side in sides]
    keys = [{key for key in seen_ids(batches) + skipped_ids(batches) if key} for batches in epochs]
    assert len(keys[0] | keys[1]) == 9
    assert not keys[0] & keys[1]
    assert keys[1]


def test_a_photograph_held_out_of_a_run_is_held_out_of_a_released_file_too(
    run_dir: Path, body: BodyModel, tmp_path: Path
) -> None:
    path = tmp_path / "COCO_CHMR_SMPL_OPT.npz"
    np.savez(path, annots=np.array(released_annots(9), dtype=object))  # 00000N.jpg, as the run's
    options = config(run_dir, holdout=0.4)
    released = config(path, holdout=0.4, images=(str(tmp_path),))
    for part in (False, True):
        sides = [TrainingImages(open_label_sets(some), body, some, held_out=part) for some in (options, released)]
        names = [{key.rpartition("/")[2] for key in ids(side)} for side in sides]
        assert names[0] == names[1]
        assert 0 < len(names[0]) < 9


def ids(images: TrainingImages) -> list[str]:
    return [key for piece in images.pieces for key in images.sets[piece.label_set].read(piece).images["image_id"]]


def test_a_photograph_that_is_another_file_than_labelled_is_named_once_and_learnt(
    tiny: TinyDataset, run_dir: Path, body: BodyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny.manifest.parent / "images", tmp_path / "images"))
    options = config(run_dir, images=(str(folder),))
    assert list(open_data(options, body).epoch(0))
    assert "(sha256)" not in caplog.text
    for name in ("000003.jpg", "000004.jpg"):
        (folder / name).write_bytes((folder / name).read_bytes() + b"another comment")
    batches = list(open_data(options, body).epoch(0))
    assert caplog.text.count("is not the file that was labelled (sha256)") == 1
    assert set(skipped_ids(batches)) == UNREADABLE


def test_only_accepted_images_are_taken_unless_more_is_asked_for(run_dir: Path, body: BodyModel) -> None:
    columns = flatten_table(read_labels(*find_label_files(run_dir)))
    for select in ("accepted", "optimized"):
        options = config(run_dir, select=select)
        images = TrainingImages(open_label_sets(options), body, options)
        assert len(images) == columns.images[f"is_{select}"].sum()


def test_nothing_to_train_on_is_said(run_dir: Path, body: BodyModel) -> None:
    with pytest.raises(DtoError, match=r"data\.labels names no labels"):
        open_label_sets(DataConfig())
    options = config(run_dir, holdout=0.0)
    with pytest.raises(LabelsError, match="no image is held out"):
        TrainingImages(open_label_sets(options), body, options, held_out=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_that_were_damaged_meanwhile_stop_the_epoch_with_a_sentence(
    run_dir: Path, body: BodyModel, tmp_path: Path, workers: int
) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    data = open_data(config(copy, workers=workers), body)
    for path in (copy / "labels").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LabelsError, match=r"^/\S+parquet is not a whole Parquet file .*write it again$"):
        list(data.epoch(0))


def test_a_reading_process_that_is_killed_is_told_in_one_sentence(run_dir: Path, body: BodyModel) -> None:
    others = {process.pid for process in multiprocessing.active_children()}  # of tests before this one
    batches = open_data(config(run_dir, workers=1, batch_images=1), body).epoch(0)
    next(batches)
    (reader,) = (process for process in multiprocessing.active_children() if process.pid not in others)
    os.kill(int(reader.pid or 0), signal.SIGKILL)
    with pytest.raises(TrainError, match=r"reads images was killed \(.*lower data\.workers"):
        list(batches)


def test_nobody_is_taught_twice() -> None:
    columns = random_columns(3)
    whole = build_labels(columns, 0, 320, 240)
    columns.people["status"] = columns.people["status"].astype(object)
    columns.people["status"][1] = "duplicate"
    kept = build_labels(columns, 0, 320, 240)
    np.testing.assert_array_equal(kept.transl, whole.transl[[0, 2]])
    assert kept.z_covariance.shape == (2, 2)
    assert kept.complete  # whoever is left out is there already


def test_a_covariance_of_other_people_costs_its_image_only() -> None:
    columns = random_columns(3)
    columns.images["z_covariance"] = columns.images["z_covariance"][:, :5]
    with pytest.raises(UnusableImage, match="5 numbers; expected the triangle of 3 people"):
        build_labels(columns, 0, 320, 240)


def test_a_spread_of_single_people_stands_for_a_covariance_that_nobody_tells() -> None:
    columns = random_columns(3)
    columns.images["z_covariance"] = np.array([None], dtype=object)
    assert np.isnan(np.diag(build_labels(columns, 0, 320, 240).z_covariance)).all()
    columns.people["z_sigma_m"] = np.array([0.1, np.nan, 0.3], np.float32)
    covariance = build_labels(columns, 0, 320, 240).z_covariance
    np.testing.assert_allclose(np.diag(covariance), [0.01, np.nan, 0.09], rtol=1e-5)
    assert covariance[0, 2] == 0


def test_labels_in_memory_are_bounded_by_the_shuffling_window(run_dir: Path, body: BodyModel) -> None:
    options = config(run_dir, shuffle_images=1)
    images = TrainingImages(open_label_sets(options), body, options)
    assert len(images.pieces) == 3
    for image in (0, 4, 8, 1, 5):
        images[0, image, image]
        assert sum(columns.num_images for columns in images._labels.values()) <= 1 + 3
    assert not pickle.loads(pickle.dumps(images))._labels


def test_a_reading_process_that_gives_nothing_has_a_deadline(
    run_dir: Path, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingImages, "__getitem__", lambda self, turn: time.sleep(60))
    data = open_data(config(run_dir, workers=1, patience=1.0), body)
    with pytest.raises(TrainError, match=r"1 processes that read images gave nothing in 1 s \(data\.patience\)"):
        next(data.epoch(0))
    with contextlib.suppress(RuntimeError):  # PyTorch raises it wherever its process is when the child's end is noticed
        for reader in multiprocessing.active_children():
            reader.kill()
            reader.join()


def test_people_outside_of_the_picture_are_left_out_and_the_nearest_stay(body: BodyModel) -> None:
    labels = random_labels(people=5, spread=0.3)
    away = labels.transl.copy()
    away[2, 0] = 40
    labels = dataclasses.replace(labels, transl=away)
    seen = see(labels, body)
    assert len(seen.targets["boxes"]) == 4
    kept = see(labels, body, most=2)
    nearest = sorted(np.delete(labels.transl[:, 2], 2))[:2]
    np.testing.assert_allclose(sorted(kept.targets["transl"][:, 2]), nearest, rtol=1e-5)
    assert kept.targets["z_covariance"].shape == (2, 2)


def see(labels: ImageLabels, body: BodyModel, most: int = 50) -> Seen:
    rules = Rules(body, DataConfig(input_size=112, max_people=most), AugmentConfig())
    return see_people(labels, (320, 240), Draw(), rules)


def test_samples_of_different_crowds_are_joined(body: BodyModel) -> None:
    crowds = [see(random_labels(people=count, seed=count, spread=0.3), body) for count in (1, 3)]
    image = np.zeros((84, 112, 3), np.uint8)
    batch = collate_samples([Sample(str(i), image, crowd) for i, crowd in enumerate(crowds)])
    assert batch.targets.image.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(batch.targets.z_covariance[0, 0], torch.tensor(crowds[0].targets["z_covariance"][0, 0]))
    torch.testing.assert_close(batch.targets.z_covariance[1:], torch.from_numpy(crowds[1].targets["z_covariance"]))
    assert batch.targets.z_covariance[0, 1:].isnan().all()


def test_a_picture_whose_pixels_are_not_square_is_stretched_with_its_labels() -> None:
    camera = np.array([[200.0, 0, 150], [0, 400, 130], [0, 0, 1]])
    size, labels = square_pixels((320, 240), random_labels(intrinsics=camera))
    assert size == (640, 240)
    np.testing.assert_allclose(labels.intrinsics, [[400, 0, 300], [0, 400, 130], [0, 0, 1]])


def test_labels_that_are_trusted_in_the_picture_only_lose_their_bodies_and_keep_their_places(
    run_dir: Path, body: BodyModel
) -> None:
    whole, flat = (
        next(iter(open_data(config(run_dir, **other), body, augment=False).epoch(0)))
        for other in ({}, {"trust": ("2d",), "complete": (False,)})
    )
    assert whole.targets.has_body.any()
    assert not flat.targets.has_body.any()
    torch.testing.assert_close(flat.targets.j2ds, whole.targets.j2ds)
    torch.testing.assert_close(flat.targets.image_focals, whole.targets.image_focals)
    assert not flat.targets.complete.any()


def test_annotated_people_come_with_joints_and_layers_but_without_bodies(
    tiny: TinyDataset, run_dir: Path, body: BodyModel, tmp_path: Path
) -> None:
    joints = np.zeros((14, 3))
    joints[:, :2] = np.arange(28).reshape(14, 2) * 2 + 20
    joints[:, 2] = 1
    joints[3, 2] = 0  # the right elbow is not seen
    people = [
        {"kp2d": joints, "depth_id": 1, "bbox": [20, 20, 90, 90]},
        {"kp2d": None, "depth_id": 0, "bbox": [0, 0, 40, 60]},
    ]
    nothing = {"kp2d": None, "depth_id": -1, "bbox": None}
    annots = {"000000.jpg": [*people, nothing], "000001.jpg": people, "x.jpg": []}
    np.savez(tmp_path / "train_annots.npz", annots=np.array(annots, dtype=object))
    images = str(tiny.manifest.parent / "images")
    options = config(tmp_path / "train_annots.npz", images=(images,), input_size=168, batch_images=1)
    first, second = sorted(open_data(options, body, augment=False).epoch(0), key=lambda batch: batch.image_ids)
    assert first.skipped == ("train_annots/000001.jpg: image 000001.jpg does not exist",)
    assert second.image_ids == ("train_annots/000000.jpg",)
    targets = second.targets
    assert targets.depth_layer.tolist() == [1, 0]
    assert not targets.has_body.any()
    assert targets.image_focals.tolist() == [0]
    assert not targets.mapped.any()
    seen = targets.j2ds_mask[0].all(-1).nonzero().flatten().tolist()
    assert seen == [1, 2, 4, 5, 7, 8, 16, 17, 18, 20, 21]
    torch.testing.assert_close(targets.j2ds[0, 16], torch.tensor([20.0, 22.0]) * 168 / 160)
    box = torch.tensor([20.0, 20, 90, 90]) / 160
    low, high = targets.boxes[0, :2] - targets.boxes[0, 2:] / 2, targets.boxes[0, :2] + targets.boxes[0, 2:] / 2
    assert (low <= box[:2] + 1e-6).all()  # joined with the box around the joints
    assert (high >= box[2:] - 1e-6).all()
    torch.testing.assert_close(targets.boxes[1], torch.tensor([20.0, 30, 40, 60]) / 160, atol=1e-4, rtol=0)
    assert targets.num_joints.tolist() == [14, 14]
    all_joints = open_data(dataclasses.replace(options, regressor="named"), body, augment=False)
    whole = next(b for b in all_joints.epoch(0) if b.targets.image.numel()).targets
    assert whole.j2ds_mask[0].all(-1).nonzero().flatten().tolist() == [*seen, 45, 46]  # head top and neck too
    torch.testing.assert_close(whole.j2ds[0, 45:], torch.tensor([[68.0, 70], [72, 74]]) * 168 / 160)
    together = dataclasses.replace(
        config(run_dir), labels=(str(run_dir), str(tmp_path / "train_annots.npz")), images=("", images), batch_images=11
    )
    mixed = next(iter(open_data(together, body).epoch(0)))
    assert mixed.targets.has_body.any()
    assert (mixed.targets.depth_layer >= 0).any()


HOSTILE = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(deadline=None, max_examples=60)
@given(
    camera=st.tuples(HOSTILE, HOSTILE, HOSTILE, HOSTILE) | st.just((400.0, 400.0, 150.0, 130.0)),
    numbers=st.tuples(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
    seed=st.integers(0, 20),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_number_in_a_label_stops_training(
    body: BodyModel, camera: tuple[float, ...], numbers: tuple[float, ...], seed: int
) -> None:
    columns = random_columns(2, seed)
    columns.images.update(
        {name: np.array([value]) for name, value in zip(("fx", "fy", "cx", "cy"), camera, strict=True)}
    )
    for name, value in zip(("pose", "betas", "transl", "bbox_xyxy"), numbers, strict=True):
        columns.people[name][0, seed % columns.people[name].shape[1]] = value
    try:
        labels = build_labels(columns, 0, 320, 240)
        size, labels = square_pixels((320, 240), labels)
    except UnusableImage:
        return
    rules, rgb = Rules(body, DataConfig(input_size=112), AugmentConfig()), np.full((240, 320, 3), 99, np.uint8)
    draw = draw_variation(np.random.default_rng(seed), AugmentConfig())
    seen = see_people(labels, size, draw, rules)
    batch = collate_samples([Sample("a", resize(rgb, seen.frame.resized), seen)]).to("cpu")
    for name in ("poses", "betas", "transl", "boxes", "j2ds", "j3ds", "scale_map"):
        assert torch.isfinite(getattr(batch.targets, name)).all(), name


@pytest.mark.slow
def test_photographs_behind_a_uri_are_read_by_fresh_processes_not_forked_ones(
    run_dir: Path, body: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = config(run_dir, workers=1)
    here = seen_ids(list(open_data(dataclasses.replace(options, workers=0), body).epoch(0)))
    monkeypatch.setattr(ParquetSet, "is_remote", True)
    data = open_data(options, body)
    assert data.start_method == "spawn"
    assert seen_ids(list(data.epoch(0))) == here
