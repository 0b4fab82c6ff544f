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
from dto_pipeline.train.losses import WEIGHTS
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset

ROOT = Path(__file__).parent.parent.parent
OPTIONS = """
encoder: {width: 32, layers: 2, heads: 4}
model: {width: 32, layers: 1, hidden: 32, queries: 6}
body: {model_path: demo}
loop: {steps: 3, warm_up: 1, rate: 1e-3, log_every: 1}
data: {select: all, holdout: 0.4, input_size: 112, workers: 0, batch_images: 2}
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> Path:
    tiny = write_tiny_dataset(tmp_path_factory.mktemp("tiny"), body)
    path = tmp_path_factory.mktemp("finished") / "run"
    run_pipeline(tiny.manifest, path, tiny_config(), progress=False)
    return path


def train(folder: Path, *options: str, out: str = "") -> int:
    """`dto train` with `OPTIONS` and others, into `folder`/out."""
    (folder / "train.yaml").write_text(OPTIONS)
    command = ["train", str(folder / "train.yaml"), "-o", out or str(folder / "out"), "--quiet"]
    return main([*command, *(part for option in options for part in ("--set", option))])


def test_a_run_becomes_a_network(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert train(tmp_path, f"data.labels=[{run_dir}]") == 0
    said = capsys.readouterr().out
    assert "pairwise depth error" in said
    assert "nothing is evaluated" not in said
    assert [path.name for path in list_checkpoints(out)] == ["step-00000003.pt"]
    rows = read_rows(out / TRAINING)
    assert len(rows) == 3
    assert sum(row["skipped_images"] for row in rows) > 0  # the tiny data set has unreadable images: counted
    assert read_rows(out / HELD_OUT)[0]["images"] > 0


def test_a_training_that_holds_nothing_out_says_so(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, f"data.labels=[{run_dir}]", "data.holdout=0", "loop.steps=1") == 0
    assert "nothing is evaluated, because no images are held out (data.holdout is 0)" in capsys.readouterr().out
    assert not (tmp_path / "out" / HELD_OUT).exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "data.labels"),
        (["data.labels=[nowhere/run]"], "data.labels names nowhere/run"),
        (
            ["data.labels=[x]", *(f"loss.{option}=0" for option in WEIGHTS.values())],
            "all weights of section loss are 0",
        ),
        (["data.labels=[x]", "data.images=[nowhere]"], "data.images names nowhere, which is no folder"),
        (["data.labels=[{run}]", "data.holdout=1e-9"], "no image is held out (data.holdout is 1e-09); raise data.hold"),
        (
            ["data.labels=[{run}]", "data.images=[{empty}]", "data.holdout=0", "loop.steps=100"],
            "none of 9 images could be used, the first: ",
        ),
    ],
)
def test_data_that_cannot_be_trained_on_are_named_with_their_option(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    named = [option.format(run=run_dir, empty=tmp_path / "empty") for option in options]
    assert train(tmp_path, *named) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "none of" not in said or "is data.images the folder of the photographs of data.labels?" in said
    assert not list_checkpoints(tmp_path / "out")


@pytest.mark.parametrize(
    ("out", "said"), [("s3://bucket/trained", "is a URI"), ("", "holds other files and no training")]
)
def test_a_training_takes_no_uri_and_no_folder_of_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, said: str
) -> None:
    assert train(tmp_path, out=out or str(tmp_path)) == 2
    assert f"{out or tmp_path} {said}" in capsys.readouterr().err


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
