"""Files of weights that others made: read by names and shapes, put into predict, init and evaluation."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dto_pipeline.cli import main
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_placed
from dto_pipeline.train.checkpoint import (
    CheckpointError,
    begin_from,
    hash_weights,
    read_checkpoint,
    read_released,
    restore_network,
)
from dto_pipeline.train.loop import TRAINING, read_rows
from dto_pipeline.view.verify import verify_run

JOBS = Path(__file__).parent.parent.parent / "jobs"
Weights = dict[str, torch.Tensor]
SIZES = ["encoder.width=32", "encoder.layers=2", "encoder.heads=2", "model.width=32", "model.layers=1"]
SIZES += ["model.hidden=32", "model.queries=4", "data.input_size=112", "data.batch_images=2", "data.workers=0"]


@pytest.fixture(scope="module")
def weights(golden_folder: Path) -> Weights:
    return load_file(golden_folder / "mahmr/golden/tiny_checkpoint.safetensors")


@pytest.fixture(scope="module")
def released(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint as accelerate saves it under DDP, with licensed arrays and constants beside the weights."""
    path = tmp_path_factory.mktemp("released") / "pytorch_model.bin"
    extra = {"human_model.layer_n.v_template": torch.zeros(6890, 3)}
    torch.save({f"module.{name}": value for name, value in {**weights, **extra}.items()}, path)
    return path


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd") / "d"
    assert main(["synth", "-o", str(folder), "--images", "4", "--quiet"]) == 0
    return folder


def test_a_released_file_predicts_photographs_and_is_evaluated(
    released: Path, golden_folder: Path, crowd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = np.load(golden_folder / "mahmr/golden/network_cases.npz")
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(recorded["image_1"]).save(photos / "1.png")
    command = ["predict", str(released), str(photos), "-o", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    assert main([*command, "--body", "demo", "--encoder-heads", "2"]) == 0
    assert "S 280, encoder of 5 layers, width 40, 2 heads, 20 queries, 11 shape coefficients" in capsys.readouterr().out
    (placed,) = read_placed(find_label_files(tmp_path / "out")[0])
    sure = recorded["batch/confs"][1] >= 0.3
    order = np.argsort(-recorded["batch/confs"][1][sure], kind="stable")
    expected = recorded["batch/transl"][1][sure][order]
    np.testing.assert_allclose(placed.scene.transl, expected, rtol=1e-3, atol=1e-4)  # as the original saw it
    np.testing.assert_allclose(placed.scene.intrinsics, recorded["batch/intrinsics"][1], rtol=1e-4)
    assert verify_run(tmp_path / "out").passed
    out = tmp_path / "crowd"
    command = ["predict", str(released), str(crowd / "images"), "-o", str(out), "--quiet", "--body", "demo"]
    assert main([*command, "--device", "cpu", "--min-confidence", "0"]) == 0
    assert main(["eval", "meshes", str(out), str(crowd), "--resamples", "0", "--body", "demo"]) == 0
    assert "MPJPE" in capsys.readouterr().out


def test_a_training_begins_with_a_released_file_and_takes_its_sizes(
    released: Path, weights: Weights, crowd: Path, tmp_path: Path
) -> None:
    run = run_of(crowd)
    config = tmp_path / "train.yaml"
    config.write_text(
        "loop: {steps: 1, rate: 0.0, warm_up: 0}\n"
        "data: {select: all, workers: 0, batch_images: 1}\nbody: {model_path: demo}\n"
    )
    command = ["train", str(config), "-o", str(tmp_path / "t"), "--init", str(released), "--quiet"]
    command += ["--set", "encoder.heads=2", "--set", f"data.labels=[{run}]"]
    assert main(command) == 0
    checkpoint = read_checkpoint(tmp_path / "t")
    assert checkpoint.config.data.input_size == 280
    for name, value in checkpoint.weights.items():
        assert torch.equal(value, weights[name]), name  # at rate 0 nothing moved
    noted = json.loads((tmp_path / "t/train.json").read_text())["init"]
    assert noted["weights"] == str(released)
    assert (noted["missing"], noted["unexpected"]) == ([], [])
    assert checkpoint.init == noted
    released.rename(released.with_name("elsewhere.bin"))  # a training that goes on does not need it any more
    try:
        assert main([*command, "--set", "loop.steps=2"]) == 0
    finally:
        released.with_name("elsewhere.bin").rename(released)


def test_stages_differ_in_names_and_a_kid_axis_is_appended(weights: Weights) -> None:
    first = {name: value[:10] if is_shape(name) else value for name, value in weights.items() if "fov_head" not in name}
    first |= {"dn_enc.weight": torch.zeros(48, 82), "dn_enc.bias": torch.zeros(48)}
    one = restore_network(read_released(first, Path("one"), 2))
    assert (one.sizes.betas, one.sizes.camera, one.sizes.denoising) == (10, False, 1)
    three = restore_network(read_released(weights, Path("three"), 2))
    taken = begin_from(three, read_released(first, Path("one"), 2).weights, "one")
    assert all(name.startswith("fov_head.") for name in taken["missing"])
    assert set(taken["unexpected"]) == {"dn_enc.weight", "dn_enc.bias"}
    last = three.state_dict()["shape_head.0.layers.4.weight"]
    assert torch.equal(last[:10], first["shape_head.0.layers.4.weight"])
    assert not last[10].any()
    assert three.mean_shape[10] == 0


def is_shape(name: str) -> bool:
    return name == "mean_shape" or (name.startswith("shape_head") and ".layers.4." in name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"conf_head.weight": torch.zeros(2, 48)},
            r"of another shape \(1\): conf_head\.weight \(2, 48\), expected \(1, 48\)",
        ),
        (
            {"conf_head.weight": torch.full((1, 48), float("nan"))},
            "the weight 'conf_head.weight' holds numbers that are not finite",
        ),
        ({"conf_head.weight": "pickle"}, "the weight 'conf_head.weight' is no dense tensor"),
        ({"encoder_pos_embeds": torch.zeros(21, 21, 40)}, "data.input_size is 294; expected a multiple of 56"),
        ({"conf_head.weight": None}, r"missing \(1\): conf_head\.weight"),
    ],
)
def test_what_is_no_such_network_is_refused_before_anything_is_built(
    weights: Weights, change: dict[str, object], sentence: str
) -> None:
    content = {name: value for name, value in {**weights, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=sentence):
        restore_network(read_released(content, Path("x.bin"), 2))


def test_a_file_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    command = ["predict", str(tmp_path / "other.pth"), str(tmp_path), "-o", str(tmp_path / "out"), "--body", "demo"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(command) == 2
    assert "other.pth: lacks encoder.norm.weight; expected the weights of an MA-HMR" in capsys.readouterr().err


def test_weights_have_one_name_whatever_file_they_lie_in(weights: Weights) -> None:
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    contents = (wrapped, dict(weights), {"epoch": 3, "state_dict": dict(weights)}, {"model": wrapped, "optimizer": {}})
    found = [read_released(content, Path("a"), 2).weights for content in contents]
    assert len({hash_weights(one) for one in found}) == 1


def test_each_published_stage_starts_and_begins_with_the_one_before(
    crowd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(crowd)
    copies = [str(shutil.copytree(run, tmp_path / f"run{number}")) for number in range(6)]  # one would count six times
    labels = (f"data.labels=[{','.join(copies)}]", "data.images=[]")
    for stage in (1, 2, 3):
        init = [f"loop.init={tmp_path / str(stage - 1)}"] if stage > 1 else []
        assert train(f"train_stage{stage}.yaml", tmp_path / str(stage), *labels, *init) == 0
    checkpoints = [read_checkpoint(tmp_path / str(stage)) for stage in (1, 2, 3)]
    assert [one.config.model.betas for one in checkpoints] == [10, 10, 11]
    assert [one.config.model.denoising for one in checkpoints] == [10, 0, 0]
    assert all(name.startswith("fov_head.") for name in checkpoints[1].init["missing"])
    assert "missing (8): fov_head" in caplog.text
    assert checkpoints[1].init["unexpected"] == ["dn_enc.weight", "dn_enc.bias"]
    assert checkpoints[2].init["missing"] == checkpoints[2].init["unexpected"] == []


def test_the_published_fine_tuning_on_relative_human_starts(crowd: Path, tmp_path: Path) -> None:
    image = next(path for path in sorted((crowd / "images").rglob("*")) if path.is_file())
    joints = np.random.default_rng(0).uniform(100, 300, (14, 3))
    joints[:, 2] = 1
    people = [{"kp2d": joints + np.array([40 * k, 0, 0]), "depth_id": k, "bbox": [90, 90, 350, 320]} for k in range(2)]
    annots = {str(image.relative_to(crowd / "images")): people}
    np.savez(tmp_path / "train_annots.npz", annots=np.array(annots, dtype=object))
    regressor = files("dto_pipeline.assets") / "J_regressor_extra.npy"
    options = [f"data.labels=[{tmp_path / 'train_annots.npz'}]", f"data.images=[{crowd / 'images'}]"]
    options += [f"data.regressor={regressor}", "loop.log_every=1"]
    assert train("train_relative_human.yaml", tmp_path / "out", *options) == 0
    (row,) = read_rows(tmp_path / "out" / TRAINING)
    assert row["j2ds"] > 0
    assert row["depths_re"] > 0
    assert "poses" in row
    assert "boxes" not in row


def train(job: str, out: Path, *options: str) -> int:
    """A step of a published training at a small size."""
    named = (*SIZES, "loop.steps=1", "body.model_path=demo", *options)
    sets = [part for option in named for part in ("--set", option)]
    return main(["train", str(JOBS / job), "-o", str(out), "--quiet", *sets])


def run_of(crowd: Path) -> Path:
    """A finished run of the crowd, made once."""
    manifest, run = crowd / "m.parquet", crowd / "run"
    if not run.exists():
        build = ["manifest", "build", str(crowd / "dataset.yaml"), "--data-root", str(crowd), "-o", str(manifest)]
        assert main([*build, "--quiet"]) == 0
        options = ["--workers", "0", "--quiet", "--set", "body.model_path=demo"]
        assert main(["run", str(manifest), "-o", str(run), *options]) == 0
    return run
