"""`dto train` from the command line on a finished run, and what `dto` says when it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import compare_training
import pytest

from dto_pipeline.cli import main
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.train.checkpoint import list_checkpoints
from dto_pipeline.train.config import load_train_config
from dto_pipeline.train.loop import HELD_OUT, TRAINING, read_rows
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset

ROOT = Path(__file__).parent.parent.parent
OPTIONS = """
encoder: {width: 32, layers: 2, heads: 4}
model: {width: 32, layers: 1, hidden: 32, queries: 6}
body: {model_path: demo}
loop: {steps: 3, warm_up: 1, rate: 1e-3, log_every: 1}
data: {select: all, holdout: 0.3, input_size: 112, workers: 0, batch_images: 2}
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> Path:
    tiny = write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body)
    path = tmp_path_factory.mktemp("finished") / "run"
    run_pipeline(tiny.manifest, path, tiny_config(), progress=False)
    return path


def test_a_run_becomes_a_network(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = tmp_path / "train.yaml", tmp_path / "out"
    config.write_text(OPTIONS)
    assert main(["train", str(config), "-o", str(out), "--set", f"data.labels=[{run_dir}]", "--quiet"]) == 0
    assert "pairwise depth error" in capsys.readouterr().out
    assert [path.name for path in list_checkpoints(out)] == ["step-00000003.pt"]
    rows = read_rows(out / TRAINING)
    assert len(rows) == 3
    assert sum(row["skipped_images"] for row in rows) > 0  # the tiny data set has unreadable images: counted
    assert read_rows(out / HELD_OUT)[0]["images"] > 0


def test_without_labels_it_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(OPTIONS)
    assert main(["train", str(config), "-o", str(tmp_path / "out")]) == 2
    assert "data.labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["data.labels=[nowhere/run]"], "data.labels names nowhere/run"),
        (["data.labels=[x]", "data.images=[nowhere]"], "data.images names nowhere, which is no folder"),
    ],
)
def test_names_that_lead_nowhere_are_told_with_their_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    (tmp_path / "train.yaml").write_text(OPTIONS)
    command = ["train", str(tmp_path / "train.yaml"), "-o", str(tmp_path / "out")]
    assert main([*command, *(part for option in options for part in ("--set", option))]) == 2
    assert sentence in capsys.readouterr().err


def test_photographs_that_are_elsewhere_end_the_training(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.yaml").write_text(OPTIONS)
    (tmp_path / "empty").mkdir()
    options = [f"data.labels=[{run_dir}]", f"data.images=[{tmp_path / 'empty'}]", "data.holdout=0", "loop.steps=100"]
    command = ["train", str(tmp_path / "train.yaml"), "-o", str(tmp_path / "out"), "--quiet"]
    assert main([*command, *(part for option in options for part in ("--set", option))]) == 2
    said = capsys.readouterr().err
    assert "none of 9 images could be used" in said
    assert "is data.images the folder of the photographs of data.labels?" in said


@pytest.mark.parametrize(
    ("out", "said"), [("s3://bucket/trained", "is a URI"), ("", "holds other files and no training")]
)
def test_a_training_takes_no_uri_and_no_folder_of_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, said: str
) -> None:
    (tmp_path / "train.yaml").write_text(OPTIONS)
    assert main(["train", str(tmp_path / "train.yaml"), "-o", out or str(tmp_path)]) == 2
    assert f"{out or tmp_path} {said}" in capsys.readouterr().err


def test_a_hold_out_that_keeps_no_image_is_refused_before_the_first_step(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "train.yaml", tmp_path / "out"
    config.write_text(OPTIONS)
    options = ["--set", f"data.labels=[{run_dir}]", "--set", "data.holdout=1e-9", "--quiet"]
    assert main(["train", str(config), "-o", str(out), *options]) == 2
    assert "no image is held out (data.holdout is 1e-09); raise data.holdout" in capsys.readouterr().err
    assert not list_checkpoints(out)


class DoneHere:
    """A command of `dto`, done in this process: PyTorch is there already."""

    def __init__(self, command: list[str]) -> None:
        self.code = main(command[3:])

    def wait(self) -> int:
        return self.code


@pytest.mark.slow
def test_the_comparison_of_two_trainings_ends_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--images", "6", "--test-images", "3", "--set", "loop.steps=2", "--set", "data.holdout=0"]
    monkeypatch.setattr(sys, "argv", ["compare_training.py", "--out", str(tmp_path), *options])
    monkeypatch.setattr(compare_training, "subprocess", SimpleNamespace(Popen=DoneHere))
    compare_training.main()
    output = capsys.readouterr().out
    assert "| pairwise depth error [m] |" in output
    assert (tmp_path / "comparison.md").read_text() in output


def test_the_example_config_is_one() -> None:
    assert load_train_config(ROOT / "jobs" / "train.yaml").loss.preset == "ours"
