"""What holds for every format: atomic, deterministic, described, and only from label files with receipts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.data.exports.formats import FORMATS, Format, export_labels, new_folder
from dto_pipeline.data.exports.job import ExportError, Selection
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import read_labels
from dto_pipeline.run.folder import RunDirectoryError, read_run_labels


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(run_dirs, tmp_path) -> Path:
    """A run of one's own, to damage."""
    return shutil.copytree(run_dirs["mpii"], tmp_path / "run")


@pytest.mark.parametrize("name", FORMATS)
def test_equal_runs_give_equal_bytes_in_any_order(name, runs, tmp_path) -> None:
    export_labels([runs["mpii"], runs["insta1"]], name, tmp_path / "a", progress=False)
    export_labels([runs["insta1"], runs["mpii"]], name, tmp_path / "b", progress=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", FORMATS)
def test_export_json_lists_every_file_with_its_sha256_and_rows(name, runs, tmp_path) -> None:
    report = export_labels([runs["mpii"]], name, tmp_path / "out", progress=False)
    told = json.loads((tmp_path / "out/export.json").read_bytes())
    found = contents(tmp_path / "out")
    assert {file["path"] for file in told["files"]} == found.keys() - {"export.json"}
    for file in told["files"]:
        assert hashlib.sha256(found[file["path"]]).hexdigest() == file["sha256"]
        assert len(found[file["path"]]) == file["bytes"]
    assert sum(file["images"] for file in told["files"]) == report.subsets[0].images
    assert sum(file["persons"] for file in told["files"]) == report.subsets[0].persons
    assert str(tmp_path) not in json.dumps(told)


@pytest.mark.parametrize("name", FORMATS)
def test_a_writer_that_fails_leaves_nothing(name, runs, tmp_path, monkeypatch) -> None:
    def fail_at_the_end(job):
        write(job)
        raise OSError("no space left on device")

    write = FORMATS[name].write
    monkeypatch.setitem(FORMATS, name, dataclasses.replace(FORMATS[name], write=fail_at_the_end))
    with pytest.raises(OSError, match="no space"):
        export_labels([runs["mpii"]], name, tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from dto_pipeline.data.exports import formats as module
from dto_pipeline.run.folder import read_run_labels
module.os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
module.export_labels([read_run_labels(sys.argv[1])], "parquet", sys.argv[2], progress=False)
"""


def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_cleans_up(runs, run_dirs, tmp_path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, str(run_dirs["mpii"]), str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    assert [path.name.startswith(".out.tmp-") for path in tmp_path.iterdir()] == [True]
    export_labels([runs["mpii"]], "parquet", out, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_under_way_is_not_swept_by_another(runs, tmp_path) -> None:
    with new_folder(tmp_path / "out") as first:
        (first / "written").touch()
        export_labels([runs["mpii"]], "parquet", tmp_path / "out", progress=False)
        assert (first / "written").exists()
        shutil.rmtree(tmp_path / "out")


def test_an_empty_folder_is_used_and_a_place_that_is_taken_is_refused(runs, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    export_labels([runs["mpii"]], "parquet", tmp_path / "out", progress=False)
    assert (tmp_path / "out/export.json").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="not an empty folder"):
        export_labels([runs["mpii"]], "parquet", tmp_path, progress=False)
    with pytest.raises(ExportError, match="not an empty folder"):
        export_labels([runs["mpii"]], "parquet", tmp_path / "file", progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_replaced_is_refused_before_the_work_and_a_link_is_followed(
    runs, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path).name == "disk")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").mkdir()
    export_labels([runs["mpii"]], "parquet", "link", progress=False)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target/export.json").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "disk").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for place in (".", "", tmp_path / "disk"):
        with pytest.raises(ExportError, match="name a new folder in it"):
            export_labels([runs["mpii"]], "parquet", place, progress=False)


@pytest.mark.parametrize("name", ["a:b", "file:a", os.fsdecode(b"\xff")])
def test_any_name_of_a_relative_folder_is_one_of_this_machine(name, runs, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    export_labels([runs["mpii"]], "parquet", f"{name}/out", progress=False)
    (path,) = find_label_files(f"{name}/out")
    assert read_labels(path).num_rows == 9


def test_a_place_taken_meanwhile_is_left_alone(runs, tmp_path, monkeypatch) -> None:
    def take_the_place(job):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/theirs").write_text("theirs")

    monkeypatch.setitem(FORMATS, "parquet", Format(take_the_place, Selection()))
    with pytest.raises(ExportError, match="appeared while"):
        export_labels([runs["mpii"]], "parquet", tmp_path / "out", progress=False)
    assert contents(tmp_path) == {"out/theirs": b"theirs"}


def test_a_run_with_a_shard_without_receipt_is_refused_unless_partial(copied, tmp_path) -> None:
    (copied / "receipts/shard-00001.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"1 of 3 shards have no valid receipt \(1\).*--partial"):
        read_run_labels(copied)
    report = export_labels([read_run_labels(copied, partial=True)], "parquet", tmp_path / "out", progress=False)
    assert report.subsets[0].images == 5
    told = json.loads((tmp_path / "out/export.json").read_bytes())["subsets"]["mpii"]["runs"][0]
    assert (told["shards"], told["shards_exported"]) == (3, 2)


def test_a_label_file_without_receipt_is_never_read(copied, tmp_path) -> None:
    shutil.copy(copied / "labels/shard-00000.parquet", copied / "labels/shard-00003.parquet")
    report = export_labels([read_run_labels(copied)], "parquet", tmp_path / "out", progress=False)
    assert report.subsets[0].images == 9


def test_a_changed_label_file_is_refused_with_its_name(copied, tmp_path) -> None:
    file = copied / "labels/shard-00002.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ExportError, match=r"shard-00002\.parquet has sha256 .* receipt"):
        export_labels([read_run_labels(copied)], "parquet", tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_label_file_that_a_launch_replaced_since_the_run_was_read_asks_for_another_export(copied, tmp_path) -> None:
    run = read_run_labels(copied)
    (copied / "labels/shard-00002.parquet").unlink()
    with pytest.raises(ExportError, match=r"shard-00002\.parquet is gone: .*; export again"):
        export_labels([run], "parquet", tmp_path / "out", progress=False)


@pytest.mark.parametrize("name", FORMATS)
def test_a_label_file_whose_footer_was_garbled_is_refused_with_its_name(name, copied, tmp_path) -> None:
    file = copied / "labels/shard-00000.parquet"
    file.write_bytes(file.read_bytes().replace(b'{"attributes"', b'x"attributes"'))  # the config, in clear and no JSON
    with pytest.raises(ExportError, match=r"shard-00000\.parquet has sha256 .* receipt"):
        export_labels([read_run_labels(copied)], name, tmp_path / "out", progress=False)


def test_the_same_image_in_two_runs_is_refused(runs, copied, tmp_path) -> None:
    with pytest.raises(ExportError, match=r"image mpii/000000\.jpg is in .* and in"):
        export_labels([runs["mpii"], read_run_labels(copied)], "parquet", tmp_path / "out", progress=False)


def test_a_selection_that_takes_nothing_says_what_it_left_out(runs, tmp_path) -> None:
    with pytest.raises(ExportError, match="9 images with fewer than 99 persons"):
        export_labels([runs["mpii"]], "parquet", tmp_path / "out", Selection(min_persons=99), progress=False)


def test_a_subset_that_would_leave_the_folder_is_refused(runs, tmp_path) -> None:
    with pytest.raises(ExportError, match="of subset"):
        export_labels([dataclasses.replace(runs["mpii"], subset="..")], "parquet", tmp_path / "out", progress=False)


def test_the_command_line_writes_and_prints_what_it_left_out(run_dirs, tmp_path, capsys) -> None:
    arguments = ["export", *map(str, run_dirs.values()), "--format", "ma-hmr", "-o", str(tmp_path / "out"), "--quiet"]
    assert main([*arguments, "--max-height-dev", "1.0", "--min-persons", "2"]) == 0
    said = capsys.readouterr().out
    assert "images not accepted left out" in said
    told = json.loads((tmp_path / "out/export.json").read_bytes())
    wanted = {"accepted_only": True, "max_deviation": 1.0, "min_persons": 2, "persons": "valid"}
    assert told["selection"] == wanted | {"max_error": None, "max_z_sigma": None}
    assert sorted(file["path"] for file in told["files"]) == ["INSTA_CHMR_SMPL_OPT.npz", "MPII_CHMR_SMPL_OPT.npz"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--format", "ma-hmr"], (True, None)),
        (["--format", "ma-hmr", "--all"], (False, None)),
        (["--format", "hf"], (False, None)),
        (["--format", "hf", "--accepted-only"], (True, None)),
        (["--format", "hf", "--max-height-dev", "2"], (True, 2.0)),
    ],
)
def test_each_format_has_its_own_default_and_options_replace_it(options, expected, run_dirs, tmp_path) -> None:
    assert main(["export", str(run_dirs["mpii"]), "-o", str(tmp_path / "out"), "--quiet", *options]) == 0
    selection = json.loads((tmp_path / "out/export.json").read_bytes())["selection"]
    assert (selection["accepted_only"], selection["max_deviation"]) == expected


def test_errors_end_in_one_line_and_exit_code_2(run_dirs, tmp_path, capsys) -> None:
    base = ["export", str(run_dirs["mpii"]), "-o", str(tmp_path / "out"), "--quiet", "--format", "ma-hmr"]
    assert main([*base, "--all", "--max-height-dev", "1"]) == 2
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "out"), "--format", "hf"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "run.json" in said[1]
