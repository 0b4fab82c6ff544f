"""The verbs that look at a finished run: what they print, write and return."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset


@pytest.fixture(scope="module")
def run_dir(body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three images."""
    root = tmp_path_factory.mktemp("verbs")
    tiny = write_tiny_dataset(root / "data", body, images=3, broken=False)
    run_pipeline(tiny.manifest, root / "run", tiny_config(), progress=False)
    return root / "run"


def test_verify_returns_zero_for_a_sound_run_one_for_a_damaged_one_and_three_for_an_unfinished_one(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run_dir)]) == 0
    assert "everything holds" in capsys.readouterr().out
    damaged = Path(shutil.copytree(run_dir, tmp_path / "damaged"))
    RunDirectory(damaged).label_file(0).unlink()
    assert main(["verify", str(damaged), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    RunDirectory(damaged).receipt_file(0).unlink()
    assert main(["verify", str(damaged), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], list(told["pending"]), told["exit_code"]) == (True, ["0"], 3)


def test_diff_of_a_run_with_itself_returns_zero(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(run_dir), str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True


def test_view_names_every_file_it_writes(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run_dir), "-o", str(tmp_path / "out"), "--key", "000001.jpg", "--glb"]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.split()]
    assert names == ["tiny-000001.png", "tiny-000001.glb"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert main(["view", str(run_dir), "-o", str(tmp_path / "none"), "--status", "image_missing"]) == 1
    assert "no scene was chosen" in capsys.readouterr().out


def test_report_prints_the_page_it_wrote(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_dir), "-o", str(tmp_path / "page"), "--worst", "0", "--random", "1"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "page" / "index.html"
    assert "<!doctype html>" in page.read_text()


def test_a_report_without_its_body_model_is_a_page_without_scenes(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    run_file = RunDirectory(copy).at("run.json")
    run_file.write_text(run_file.read_text().replace('"model_path": "demo"', '"model_path": "gone.npz"'))
    assert main(["report", str(copy), "-o", str(tmp_path / "page")]) == 0
    assert "without scenes: no body model at gone.npz" in capsys.readouterr().out
    assert 'class="scene"' not in (tmp_path / "page" / "index.html").read_text()
    assert main(["report", str(copy), "-o", str(tmp_path / "page"), "--body", "gone.npz"]) == 2
