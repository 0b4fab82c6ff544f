"""`dto predict` from a checkpoint on disk: what it writes, and what it refuses in one sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dto_pipeline.cli import main
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_placed
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.folder import RunDirectory, read_identity
from dto_pipeline.train.checkpoint import (
    Checkpoint,
    Position,
    begin_network,
    hash_weights,
    read_checkpoint,
    save_checkpoint,
)
from dto_pipeline.view.verify import verify_run
from tests.train.small_crowds import tiny_config


@pytest.fixture(scope="module")
def training(body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that is sure of everybody."""
    config = tiny_config(encoder__layers=2)
    torch.manual_seed(0)
    network, init = begin_network(config)
    torch.nn.init.constant_(network.conf_head.bias, 2.0)
    folder = tmp_path_factory.mktemp("training")
    save_checkpoint(
        folder,
        Checkpoint(config, init, network.state_dict(), {}, Position(), {}, body.sha256),
    )
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        rgb = np.random.default_rng(number).integers(0, 255, (60, 90, 3)).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{number}.png")
    return folder


def test_a_training_predicts_a_folder(
    training: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (images / "torn.png").write_bytes(b"torn")
    assert main(["predict", str(training), str(images), "-o", str(out), "--device", "cpu", "--quiet"]) == 1
    said, complaint = capsys.readouterr()
    assert complaint.startswith("dto predict: more than 0.05 of the images could not be predicted; mend them")
    assert f"the network of {training}/checkpoints/step-00000000.pt, step 0" in said
    assert "36 people in 4 images, of which could not be predicted: 1 image_corrupt" in said
    for placed in read_placed(find_label_files(out)[0])[:3]:
        scene = placed.scene
        assert scene.num_people == 12  # its queries
        assert np.isfinite(scene.transl).all()
        fov = 2 * np.arctan(60 / 2 / scene.intrinsics[1, 1])
        assert fov == pytest.approx(np.pi / 6, abs=0.4)  # where an untrained network begins
        assert (scene.intrinsics[0, 2], scene.intrinsics[1, 2]) == pytest.approx((45, 30))
    assert verify_run(out).passed
    weights = read_checkpoint(training).weights
    assert read_identity(RunDirectory(out)).versions["checkpoint"] == hash_weights(weights)


def test_photographs_that_a_viewer_turns_are_said(
    training: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = Image.Exif()
    note[0x0112] = 6
    command = ["predict", str(training), str(images), "--device", "cpu", "--quiet", "-o"]
    assert main([*command, str(tmp_path / "upright")]) == 0
    assert capsys.readouterr().err == ""
    Image.open(images / "0.png").convert("RGB").save(images / "turned.jpg", exif=note)
    assert main([*command, str(tmp_path / "turned")]) == 0
    assert "1 of 4 photographs looked at have an EXIF note that turns them" in capsys.readouterr().err


def test_a_second_start_refuses_what_is_finished(
    training: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(training), str(images), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert main(command) == 0
    assert main(command) == 2
    assert "is a finished run already; choose another folder" in capsys.readouterr().err


def test_options_reach_the_labels_and_a_prediction_without_anybody_is_no_success(
    training: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--fov", "90", "--min-confidence", "0.99", "--subset", "trip", "--batch", "1", "--depth", str(tmp_path)]
    assert main(["predict", str(training), str(images), "-o", str(tmp_path / "out"), *options, "--quiet"]) == 1
    said = capsys.readouterr().err
    assert "nobody was found in any of 3 images with a confidence of 0.99; lower --min-confidence" in said
    placed = read_placed(find_label_files(tmp_path / "out")[0])
    assert [(p.scene.image_id, p.scene.num_people, str(p.status)) for p in placed] == [
        (f"trip/{number}.png", 0, "no_people") for number in range(3)
    ]
    assert placed[0].scene.intrinsics[1, 1] == pytest.approx(30)
    manifest = Manifest.open(tmp_path / "out/manifest.parquet")
    assert manifest.read_shard(0)["depth_file"].to_pylist() == ["0.npy", "1.npy", "2.npy"]
    assert manifest.depth_root == tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fov", "190"], "between 0 and 180"),
        (["--device", "gpu7"], "device is 'gpu7'; expected auto, cpu, cuda or cuda:1"),
        (["--device", "cuda:99"], "GPUs here; take auto or cpu"),
        (["--keep-camera"], "--keep-camera would need a manifest"),
        (["--image-root", "x"], "--image-root would need a manifest"),
        (["-o", "s3://bucket/predicted"], "s3://bucket/predicted is a URI"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    training: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert main(["predict", str(training), str(images), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_another_body_model_than_that_of_the_training_is_refused(
    training: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dataclasses.replace(read_checkpoint(training), body_sha256="f" * 64)
    save_checkpoint(tmp_path / "other", other)
    assert main(["predict", str(tmp_path / "other"), str(images), "-o", str(tmp_path / "out")]) == 2
    assert "was trained with ffffffffffffffff; name the right one" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_by_name_and_its_folder_gives_the_one_before(
    training: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "again"
    first = read_checkpoint(training)
    for step in (1, 2):
        newest = save_checkpoint(folder, dataclasses.replace(first, position=Position(step, 0, step)))
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(["predict", str(newest), str(images), "-o", str(tmp_path / "out")]) == 2
    assert f"{newest} is no file of tensors or is damaged" in capsys.readouterr().err
    assert main(["predict", str(folder), str(images), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert "step-00000001.pt, step 1" in capsys.readouterr().out
    assert "step-00000002.pt is no file of tensors or is damaged" in caplog.text


def test_what_is_no_checkpoint_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.pt").write_text("no checkpoint")
    for path in (tmp_path / "notes.pt", tmp_path / "none", images):
        assert main(["predict", str(path), str(images), "-o", str(tmp_path / "out")]) == 2
        assert "checkpoint" in capsys.readouterr().err
