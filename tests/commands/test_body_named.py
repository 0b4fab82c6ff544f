"""No verb takes a body model by itself: unnamed it is asked for in one sentence, before anything is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.models.body import BodyModel
from tests.tiny_dataset import write_tiny_dataset

CALM = ("--workers=0", "--set=run.device=cpu", "--quiet")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, body: BodyModel) -> Path:
    """Two images, their manifest as of a real data set, and a run."""
    root = tmp_path_factory.mktemp("named")
    tiny = write_tiny_dataset(root / "data", body, images=2, shard_images=2, broken=False)
    build_manifest(dataclasses.replace(tiny.dataset, body=""), root / "m.parquet", progress=False)
    assert main(["run", str(root / "m.parquet"), "-o", str(root / "labels"), *CALM, "--body", "demo"]) == 0
    (root / "train.yaml").write_text(f"data: {{labels: [{root / 'labels'}]}}\n")
    return root


@pytest.mark.parametrize(
    "words",
    [
        "run m.parquet -o out --workers=0",
        "run m.parquet -o out --address=127.0.0.1:1",
        "run m.parquet -o out --dry-run",
        "train train.yaml -o out",
        "manifest merge m.parquet labels -o out",
        "eval synthetic labels --truth labels --json out",
        "eval meshes labels labels --csv out",
    ],
)
def test_a_verb_without_a_body_names_the_option_and_makes_nothing(
    place: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "name a body: body.model_path=PATH" in said
    assert "or demo for the free stand-in" in said
    assert sorted(place.rglob("*")) == before


def test_labels_of_a_run_are_trained_on_with_their_own_body_only(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(__file__).parents[2] / "dto_pipeline" / "assets" / "SMPL_NEUTRAL.npz"  # the labels: SMPLA_NEUTRAL
    words = ["train", str(place / "train.yaml"), "-o", str(place / "trained"), "--set", f"body.model_path={other}"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "name the body model the labels were made with" in said
    assert str(other) in said
    assert not (place / "trained").exists()
