"""Predictions are carried back to the photograph exactly, and become a run that everything reads."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dto_pipeline.cli import main
from dto_pipeline.commands.predict import predict_run
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import find_label_files, flatten_table
from dto_pipeline.data.labels import read_labels, read_placed
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.manifest_build.merge import merge_predictions
from dto_pipeline.data.tars import open_images
from dto_pipeline.errors import DtoError
from dto_pipeline.maths.camera import project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.lease import RunLocked
from dto_pipeline.run.report import read_status
from dto_pipeline.scene import Scene
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.predict import (
    PARTS,
    Picture,
    list_pictures,
    predict_scenes,
    predict_shards,
)
from dto_pipeline.view.verify import verify_run
from tests.run.chaos import label_bytes, tiny_config
from tests.tars import write_tar
from tests.tiny_dataset import TinyDataset, write_tiny_dataset
from tests.train.stand_in import FOCAL, StandIn, stand_in


def write_image(path: Path, width: int = 120, height: int = 80, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them torn, and a text."""
    images = tmp_path / "holiday"
    write_image(images / "b/2.png", 70, 110, seed=1)
    write_image(images / "a.png")
    (images / "c.jpg").write_bytes(b"\xff\xd8\xff torn")
    (images / "notes.txt").write_text("no image")
    return images


@pytest.fixture
def tiny(tmp_path: Path, body: BodyModel) -> TinyDataset:
    return write_tiny_dataset(tmp_path / "tiny", body, images=4, shard_images=2, broken=False)


def predict_one(body: BodyModel, root: Path, picture: Picture, network: StandIn) -> Scene:
    (scene,) = predict_scenes(stand_in(body, network), ImageStore(root), [picture])
    return scene


def predict(body: BodyModel, folder: Path, out: Path, network: StandIn | None = None, **options: Any) -> Manifest:
    """A run of a folder's images in `out`."""
    return predict_run(stand_in(body, network), list_pictures(str(folder), out), out, progress=False, **options)


def joints_in(body: BodyModel, scene: Scene) -> np.ndarray:
    """(P, 24, 2) where the photograph shows the joints."""
    arrays = (torch.from_numpy(values) for values in (scene.pose, scene.betas, scene.transl))
    return project(body.joints(*arrays)[:, :24].double(), torch.from_numpy(scene.intrinsics)).numpy()


def joints_in_input(body: BodyModel, network: StandIn, order: list[int]) -> np.ndarray:
    """(P, 24, 2) where the network saw the joints."""
    answer = network([torch.zeros(3, *network.sizes[0], dtype=torch.uint8)])
    joints = body.joints(*(getattr(answer, name)[0, 0, order] for name in ("poses", "betas", "transl")))
    return project(joints[:, :24].double(), answer.intrinsics[0].double()).numpy()


@pytest.mark.parametrize("size", [(120, 80), (70, 110)])
def test_predicted_bodies_project_onto_the_same_place_of_the_photograph(
    body: BodyModel, tmp_path: Path, size: tuple[int, int]
) -> None:
    write_image(tmp_path / "a.png", *size)
    network = StandIn()
    scene = predict_one(body, tmp_path, Picture("x/a.png", "x", "a.png", "a.png"), network)
    assert scene.det_score.tolist() == pytest.approx([0.9, 0.6])
    assert network.sizes == [(74, 112) if size[0] > size[1] else (112, 71)]
    grow = np.array(network.sizes[0][::-1]) / size
    np.testing.assert_allclose(joints_in(body, scene), joints_in_input(body, network, [1, 0]) / grow, atol=1e-3)
    np.testing.assert_allclose(scene.transl, [(-0.3, 0.1, 3.0), (0.4, 0.2, 5.0)], rtol=1e-6)
    camera = np.diag([*(FOCAL / grow), 1])
    camera[:2, 2] = np.array(size) / 2
    np.testing.assert_allclose(scene.intrinsics, camera)
    left, top, right, bottom = scene.bbox_xyxy[0]
    np.testing.assert_allclose([left, top, right], np.array([40, 20, 60]) / grow[[0, 1, 0]], rtol=1e-5)
    assert bottom == size[1]  # boxes end at the border


def test_a_known_camera_stays_and_every_pelvis_keeps_its_place(body: BodyModel, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    camera = np.array([[200.0, 0, 70], [0, 180, 30], [0, 0, 1]])
    told, network = (200.0, 180.0, 70.0, 30.0), StandIn()
    scene = predict_one(body, tmp_path, Picture("x/a.png", "x", "a.png", "a.png", told), network)
    np.testing.assert_array_equal(scene.intrinsics, camera)
    seen, grow = joints_in_input(body, network, [1, 0])[:, 0], np.array(network.sizes[0][::-1]) / (120, 80)
    np.testing.assert_allclose(joints_in(body, scene)[:, 0], seen / grow, atol=1e-3)
    ratio = 180 / (FOCAL / grow[1])
    arrays = (torch.from_numpy(values) for values in (scene.pose, scene.betas, scene.transl))
    pelvis_z = body.joints(*arrays)[:, 0, 2].numpy()
    np.testing.assert_allclose(pelvis_z, (np.array([3.0, 5]) + pelvis_z - scene.transl[:, 2]) * ratio, rtol=1e-5)


def test_a_camera_that_no_picture_can_have_costs_its_picture_only(body: BodyModel, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    cameras = [(1e-9, 100.0, 0.0, 0.0), (math.nan, 1.0, 0.0, 0.0), (100.0, 100.0, 60.0, 40.0)]
    pictures = [Picture(f"x/{k}", "x", "a.png", "a.png", camera) for k, camera in enumerate(cameras)]
    first, second, third = predict_scenes(stand_in(body), ImageStore(tmp_path), pictures)
    assert first.problem is not None
    assert first.problem[0] == ImageStatus.LABEL_INVALID
    assert "focal length beyond" in first.problem[1]
    assert second.problem is not None
    assert second.problem[0] == ImageStatus.LABEL_INVALID
    assert third.num_people == 2


def test_a_camera_for_another_size_costs_its_picture_where_that_size_is_known(body: BodyModel, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")  # 120 x 80
    sizes = [(120, 80), (240, 160), (0, 0), ()]
    pictures = [Picture(f"x/{k}", "x", "a.png", "a.png", (100.0, 100.0, 60.0, 40.0, *k)) for k in sizes]
    right, other, *unknown = predict_scenes(stand_in(body), ImageStore(tmp_path), pictures)
    assert other.problem == (ImageStatus.SIZE_MISMATCH, "it has 120 x 80 pixels, its camera is for 240 x 160")
    assert [one.num_people for one in (right, *unknown)] == [2, 2, 2]
    np.testing.assert_array_equal(right.intrinsics, [[100, 0, 60], [0, 100, 40], [0, 0, 1]])


def test_a_known_field_of_view_decides_the_focal_length(body: BodyModel, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    scene = predict_one(body, tmp_path, Picture("x/a.png", "x", "a.png", "a.png", fov=math.pi / 2), StandIn())
    np.testing.assert_allclose(scene.intrinsics, [[40, 0, 60], [0, 40, 40], [0, 0, 1]], atol=1e-9)


def test_a_folder_becomes_a_run_with_a_row_for_every_image(body: BodyModel, folder: Path, tmp_path: Path) -> None:
    manifest = predict(body, folder, tmp_path / "out")
    placed = read_placed(find_label_files(tmp_path / "out")[0])
    assert [p.scene.image_id for p in placed] == ["holiday/a.png", "holiday/b/2.png", "holiday/c.jpg"]
    assert [str(p.status) for p in placed] == ["predicted", "predicted", "image_corrupt"]
    assert placed[2].message
    assert (manifest.num_images, manifest.num_people) == (3, 4)
    np.testing.assert_allclose(placed[0].height_m, body.rest_height(torch.tensor(placed[0].betas)), rtol=1e-5)
    assert verify_run(tmp_path / "out").passed
    assert not (tmp_path / "out" / PARTS).exists()


def test_batches_change_no_byte(body: BodyModel, folder: Path, tmp_path: Path) -> None:
    for name, batch in {"a": 2, "b": 1}.items():
        predict(body, folder, tmp_path / name, batch=batch)
    assert label_bytes(tmp_path / "a") == label_bytes(tmp_path / "b")


def test_a_killed_prediction_goes_on_where_it_was(body: BodyModel, folder: Path, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dying(StandIn):
        def __call__(self, images: Sequence[torch.Tensor]) -> Predictions:
            if len(self.sizes) == 1:
                raise Killed
            return super().__call__(images)

    out = tmp_path / "out"
    pictures = list_pictures(str(folder), out, shard_images=1)
    with pytest.raises(Killed):
        predict_run(stand_in(body, Dying()), pictures, out, progress=False)
    network = StandIn()
    predict_run(stand_in(body, network), pictures, out, progress=False)
    assert len(network.sizes) == 1  # only the second image; the third cannot be read
    again = list_pictures(str(folder), tmp_path, shard_images=1)
    predict_run(stand_in(body), again, tmp_path / "whole", progress=False)
    assert label_bytes(out) == label_bytes(tmp_path / "whole")


def test_pictures_that_would_share_one_depth_map_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "pictures")
    for name in ("twin.jpg", "twin.png"):
        (tmp_path / "pictures" / name).touch()
    with pytest.raises(DtoError, match=r"both would have twin\.npy"):
        list_pictures(str(tmp_path / "pictures"), tmp_path / "out", depth=str(tmp_path))
    assert list_pictures(str(tmp_path / "pictures"), tmp_path / "out").num_images > 2


def test_of_two_predictions_into_one_folder_the_first_is_kept(body: BodyModel, folder: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "out", list_pictures(str(folder), tmp_path)
    others = stand_in(body, StandIn(transl=((0, 0, 7), (0, 0, 8), (0, 0, 9))))
    refused = []

    class Overtaken(StandIn):
        def __call__(self, images: Sequence[torch.Tensor]) -> Predictions:
            with pytest.raises(RunLocked) as error:
                predict_run(others, pictures, out, progress=False)
            refused.append(str(error.value))
            return super().__call__(images)

    predict_run(stand_in(body, Overtaken()), pictures, out, progress=False)
    assert "is being worked on by process" in refused[0]
    late = list_pictures(str(folder), out)  # it had begun before the first was finished
    with pytest.raises(DtoError, match="is a finished run already"):
        predict_run(others, late, out, progress=False)
    assert verify_run(out).passed
    assert not (out / PARTS).exists()


def test_a_prediction_that_goes_on_with_other_images_begins_anew(
    body: BodyModel, tiny: TinyDataset, tmp_path: Path
) -> None:
    given, out = Manifest.open(tiny.manifest), tmp_path / "out"
    wrong = dataclasses.replace(given, images_root=tmp_path)
    predict_shards(stand_in(body), wrong, out, progress=False)  # of which no image is found, killed before it is a run
    assert predict_run(stand_in(body), given, out, progress=False).num_people == 8


def test_a_prediction_killed_while_it_became_a_run_is_finished(
    body: BodyModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    pictures = list_pictures(str(folder), out, shard_images=1)
    monkeypatch.setattr("dto_pipeline.run.publish.commit_receipt", die)
    with pytest.raises(KeyboardInterrupt):
        predict_run(stand_in(body), pictures, out, progress=False)
    monkeypatch.undo()
    assert (out / PARTS).exists()
    predict_run(stand_in(body), pictures, out, progress=False)
    assert verify_run(out).passed
    assert not (out / PARTS).exists()


def test_people_who_are_behind_the_camera_stay_with_their_status(body: BodyModel, folder: Path, tmp_path: Path) -> None:
    network = StandIn(transl=((0, 0, 5), (0, 0, -3), (0, 0, 1)))
    predict(body, folder, tmp_path / "out", network)
    placed = read_placed(find_label_files(tmp_path / "out")[0])[0]
    assert [str(status) for status in placed.person_status] == ["invalid_label", "not_run"]
    rows = Manifest.open(tmp_path / "out/manifest.parquet").read_shard(0)
    assert "not in front" in rows["persons"][0][0]["problem"].as_py()


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("confs", (0, 1, 2), "the network's confidences are not finite"),
        ("intrinsics", (1, 0, 0), "the network's camera is not finite"),
        ("boxes", (0, 1, slice(None), 3), "no person can be used: its box is not finite"),
        ("betas", (0, 1), "no person can be used: betas are not finite"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_costs_its_image_only(
    body: BodyModel, tmp_path: Path, name: str, place: tuple[int, ...], message: str, value: float
) -> None:
    def spoil(answer: Predictions) -> None:
        getattr(answer, name)[place] = value

    for number in range(3):
        write_image(tmp_path / "set" / f"{number}.png", seed=number)
    predict(body, tmp_path / "set", tmp_path / "out", StandIn(spoil=spoil), batch=3)
    placed = read_placed(find_label_files(tmp_path / "out")[0])
    assert [str(one.status) for one in placed] == ["predicted", "prediction_invalid", "predicted"]
    assert [one.message for one in placed] == [None, message, None]
    assert (placed[1].scene.width, placed[1].scene.height) == (120, 80)
    assert {str(status) for status in placed[1].person_status} <= {"invalid_label"}
    assert read_status(tmp_path / "out").image_status == {"predicted": 2, "prediction_invalid": 1}
    assert verify_run(tmp_path / "out").passed


def test_somebody_whose_numbers_are_not_finite_costs_nobody_else(body: BodyModel, tmp_path: Path) -> None:
    def spoil(answer: Predictions) -> None:
        answer.boxes[0, 0, 1, 0] = np.nan

    write_image(tmp_path / "a.png")
    scene = predict_one(body, tmp_path, Picture("x/a.png", "x", "a.png", "a.png"), StandIn(spoil=spoil))
    assert scene.problem is None
    assert scene.person_problem == [(PersonStatus.INVALID_LABEL, "its box is not finite"), None]


def test_nobody_sure_enough_is_an_image_without_people(body: BodyModel, folder: Path, tmp_path: Path) -> None:
    predict(body, folder, tmp_path / "out", min_confidence=0.95)
    placed = read_placed(find_label_files(tmp_path / "out")[0])
    assert [p.status for p in placed[:2]] == [ImageStatus.NO_PEOPLE] * 2
    assert verify_run(tmp_path / "out").passed


def test_pictures_that_cannot_be_found_are_said(tmp_path: Path) -> None:
    with pytest.raises(DtoError, match="cannot be listed"):
        list_pictures(str(tmp_path / "none"), tmp_path / "out")
    with pytest.raises(DtoError, match="holds no image"):
        list_pictures(str(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_predictions_of_a_manifest_keep_its_keys_shards_and_depth(
    body: BodyModel, tiny: TinyDataset, tmp_path: Path
) -> None:
    pictures = Manifest.open(tiny.manifest)
    predict_run(stand_in(body), pictures, tmp_path / "out", keep_camera=True, progress=False)
    given, made = pictures, Manifest.open(tmp_path / "out/manifest.parquet")
    assert [size.images for size in made.shard_sizes] == [size.images for size in given.shard_sizes]
    for name in ("image_id", "image_file", "depth_file", "fx", "cx"):
        for shard in range(made.num_shards):
            assert made.read_shard(shard)[name].to_pylist() == given.read_shard(shard)[name].to_pylist(), name
    assert made.depth_root == given.depth_root


def test_people_predicted_on_images_of_another_size_are_not_merged(
    body: BodyModel, tiny: TinyDataset, tmp_path: Path
) -> None:
    pictures, small = Manifest.open(tiny.manifest), tmp_path / "small"
    small.mkdir()
    for path in (tiny.manifest.parent / "images").iterdir():
        with Image.open(path) as image:
            image.reduce(2).save(small / path.name)
    predict_run(stand_in(body), dataclasses.replace(pictures, images_root=small), tmp_path / "made", progress=False)
    report = merge_predictions(tiny.manifest, tmp_path / "made", tmp_path / "more.parquet", body, progress=False)
    assert report.predictions == 8
    assert report.refused == {"invalid_camera: made on an image of another size": 8}


def test_images_in_tars_are_found_again_by_the_new_manifest(body: BodyModel, tiny: TinyDataset, tmp_path: Path) -> None:
    root = tiny.manifest.parent
    files = {path.name: path.read_bytes() for path in sorted((root / "images").iterdir())}
    write_tar(root / "tars/0.tar", files)
    dataset = dataclasses.replace(tiny.dataset, images="tars", images_in="tars")
    build_manifest(dataset, tmp_path / "packed.parquet", progress=False)
    pictures = Manifest.open(tmp_path / "packed.parquet")
    made = predict_run(stand_in(body), pictures, tmp_path / "out", progress=False)
    assert made.num_people == 8
    name = made.read_shard(0)["image_file"][0].as_py()
    assert name.startswith("0.tar!")
    assert open_images(made.images_root, made.path).read(name).rgb.shape == (120, 160, 3)


@pytest.mark.slow
def test_predictions_are_viewed_exported_merged_and_placed(body: BodyModel, tiny: TinyDataset, tmp_path: Path) -> None:
    out = tmp_path / "predicted"
    predict_run(stand_in(body), Manifest.open(tiny.manifest), out, progress=False)
    assert main(["view", str(out), "--random", "1", "-o", str(tmp_path / "pages"), "--glb"]) == 0
    assert list((tmp_path / "pages").glob("*.png"))
    assert main(["export", str(out), "--format", "hf", "-o", str(tmp_path / "hf"), "--quiet"]) == 0
    assert main(["export", str(out), "--format", "camerahmr", "--all", "-o", str(tmp_path / "npz"), "--quiet"]) == 0
    merged = tmp_path / "merged.parquet"
    assert main(["manifest", "merge", str(tiny.manifest), str(out), "-o", str(merged), "--quiet"]) == 0
    before, after = Manifest.open(tiny.manifest), Manifest.open(merged)
    assert after.num_people > before.num_people
    run_pipeline(merged, tmp_path / "run", tiny_config(), progress=False)
    columns = flatten_table(read_labels(*find_label_files(tmp_path / "run")))
    added = columns.people["source_row"] == -1
    assert added.any()
    assert set(np.round(columns.people["det_score"][added].astype(float), 2)) <= {0.6, 0.9}
    run_pipeline(out / "manifest.parquet", tmp_path / "placed", tiny_config(), progress=False)
    again = flatten_table(read_labels(*find_label_files(tmp_path / "placed")))
    assert again.num_people == 8
    assert (again.people["source_row"] == -1).all()
