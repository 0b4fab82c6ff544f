"""The verbs that look at finished runs. Several in one call: one table, the worst exit code, a row for what is none."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.commands.output import worst_exit
from dto_pipeline.models.body import BodyModel
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from tests.run.chaos import tiny_config
from tests.tiny_dataset import write_tiny_dataset


@pytest.fixture(scope="module")
def runs(body: BodyModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound run, one whose label file is gone, one that is not finished, one that is none."""
    root = tmp_path_factory.mktemp("several")
    tiny = write_tiny_dataset(root / "data", body, images=2, shard_images=1, broken=False)
    sound = root / "sound"
    run_pipeline(tiny.manifest, sound, tiny_config(), progress=False)
    broken = Path(shutil.copytree(sound, root / "broken"))
    RunDirectory(broken).label_file(0).unlink()
    pending = Path(shutil.copytree(broken, root / "pending"))
    RunDirectory(pending).receipt_file(0).unlink()
    return {"sound": sound, "broken": broken, "pending": pending, "none": root / "data"}


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("sound", "sound"), 0),
        (("sound", "pending"), 3),
        (("pending", "broken", "sound"), 1),
        (("none", "sound", "broken"), 2),
    ],
)
def test_verify_returns_the_worst_code_and_a_row_for_each(names, code, runs, capsys) -> None:
    assert main(["verify", *(str(runs[name]) for name in names)]) == code
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[-2:] == ["exit", "code"]
    assert [Path(row.split()[0]) for row in rows] == [runs[name] for name in names]


def test_status_shows_one_table_and_json_keeps_every_number(runs, capsys) -> None:
    assert main(["status", str(runs["sound"]), str(runs["pending"])]) == 0
    table = capsys.readouterr().out
    assert "2 done, 0 failed, 0 pending" in table
    assert "1 done, 0 failed, 1 pending" in table
    assert main(["status", str(runs["sound"]), str(runs["none"]), "--json"]) == 2
    captured = capsys.readouterr()
    sound, none = json.loads(captured.out)
    assert sound["images_done"] == 2
    assert "no run.json" in none["error"]
    assert "no run.json" in captured.err
    assert main(["status", str(runs["sound"]), str(runs["pending"]), "--watch"]) == 2


def test_report_writes_a_page_each(runs, tmp_path, capsys) -> None:
    told = ["-o", str(tmp_path), "--worst", "0", "--random", "0"]
    assert main(["report", str(runs["sound"]), str(runs["pending"]), *told]) == 0
    assert (tmp_path / "sound" / "index.html").is_file()
    assert (tmp_path / "pending" / "index.html").is_file()
    assert "2 of 2" in capsys.readouterr().out


def test_diff_pairs_runs_by_subset(runs, capsys) -> None:
    assert main(["diff", str(runs["sound"]), "--against", str(runs["sound"])]) == 0
    assert main(["diff", str(runs["sound"]), str(runs["pending"])]) == 1
    assert main(["diff", str(runs["sound"])]) == 2
    assert "--against" in capsys.readouterr().err
    two = [str(runs["sound"]), str(runs["pending"])]
    assert main(["diff", *two, "--against", *two]) == 2
    assert "both of subset tiny" in capsys.readouterr().err


def test_the_worst_code_is_the_same_in_any_order() -> None:
    for codes in itertools.permutations((0, 3, 1, 2)):
        assert worst_exit(codes) == 2
    assert (worst_exit((0, 3)), worst_exit((3, 1)), worst_exit(()), worst_exit((0, 130, 2))) == (3, 1, 0, 130)


def test_verify_of_one_run_says_what_holds_and_json_what_does_not(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(runs["sound"])]) == 0
    assert "everything holds" in capsys.readouterr().out
    assert main(["verify", str(runs["broken"]), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False
    assert main(["verify", str(runs["pending"]), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["pending"], told["exit_code"]) == (True, 1, 3)


def test_diff_of_a_run_with_itself_returns_zero(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(runs["sound"]), str(runs["sound"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True


def test_view_names_every_file_it_writes(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["view", str(runs["sound"]), "-o", str(tmp_path / "out"), "--key", "000001.jpg", "--glb"]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.split()]
    assert names == ["tiny-000001.png", "tiny-000001.glb"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert main(["view", str(runs["sound"]), "-o", str(tmp_path / "none"), "--status", "image_missing"]) == 1
    assert "no scene was chosen" in capsys.readouterr().out


def test_report_prints_the_page_it_wrote(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(runs["sound"]), "-o", str(tmp_path / "page"), "--worst", "0", "--random", "1"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == tmp_path / "page" / "index.html"
    assert "<!doctype html>" in page.read_text()


def test_a_report_without_its_body_model_is_a_page_without_scenes(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(runs["sound"], tmp_path / "copy"))
    run_file = RunDirectory(copy).at("run.json")
    run_file.write_text(run_file.read_text().replace('"model_path": "demo"', '"model_path": "gone.npz"'))
    assert main(["report", str(copy), "-o", str(tmp_path / "page")]) == 0
    assert "without scenes: no body model at gone.npz" in capsys.readouterr().out
    assert 'class="scene"' not in (tmp_path / "page" / "index.html").read_text()
    assert main(["report", str(copy), "-o", str(tmp_path / "page"), "--body", "gone.npz"]) == 2
