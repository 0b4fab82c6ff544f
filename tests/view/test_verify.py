"""A sound run passes; every kind of damage is found and named."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline import terminal
from dto_pipeline.config import load_config
from dto_pipeline.data import receipts
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.manifest import ManifestError
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import (
    Failure,
    RunDirectory,
    RunDirectoryError,
    find_damage,
    read_identity,
    record_failure,
    scan_run,
)
from dto_pipeline.run.plan import Selection
from dto_pipeline.run.report import read_status
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus
from dto_pipeline.view import verify
from dto_pipeline.view.verify import Verdict, verify_run
from tests.released_files import released_annots, write_released
from tests.run.chaos import tiny_config
from tests.tiny_dataset import TinyDataset
from tests.view.conftest import Spoil, edit_receipt, first_moved, rewrite_shard


def broken(verdict: Verdict) -> dict[str, list[str]]:
    return {rule.name: rule.offences for rule in verdict.rules.values() if rule.broken}


def test_a_sound_run_passes_every_rule_and_leaves_nothing_unchecked(run_dir: Path, tiny: TinyDataset) -> None:
    verdict = verify_run(run_dir)
    assert verdict.passed, verdict.as_table()
    assert verdict.unchecked == []
    assert (verdict.images, verdict.persons) == (tiny.images, tiny.persons)
    assert verdict.doubtful == 0
    assert all(rule.checked > 0 for rule in (*verdict.rules.values(), *verdict.judgements.values()))
    assert "everything holds" in verdict.as_table()


@pytest.mark.parametrize("override", ["joint.move_single=true", "joint.depth_model=affine_disparity"])
def test_a_run_of_the_joint_solver_obeys_its_own_limits(tiny: TinyDataset, tmp_path: Path, override: str) -> None:
    config = load_config(None, ["run.workers=0", "solver.mode=joint", override])
    run_pipeline(tiny.manifest, tmp_path / "run", config, progress=False)
    verdict = verify_run(tmp_path / "run")
    assert verdict.passed, verdict.as_table()
    assert verdict.doubtful == 0, verdict.as_table()
    assert verdict.judgements["joints keep their pixels"].checked > 0


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Screen, io.StringIO])
def test_what_takes_minutes_with_a_whole_data_set_shows_on_a_terminal_only_how_far_it_is(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    released = write_released(tmp_path / "COCO_CHMR_SMPL_OPT.npz", released_annots(3))
    directory = RunDirectory(run_dir)
    scan = scan_run(directory, read_identity(directory))
    monkeypatch.setattr(terminal, "_SILENT_S", 0)
    works: list[Callable[[], object]] = [
        lambda: verify_run(run_dir),
        lambda: find_damage(directory, scan.done),
        lambda: read_labels(*scan.files.values()),
        lambda: open_ma_hmr(released),
    ]
    for work in works:
        monkeypatch.setattr(sys, "stderr", screen := stream())
        work()
        assert ("%" in screen.getvalue()) is (stream is Screen)


def test_a_byte_changed_on_disk_is_found(copy: Path) -> None:
    path = RunDirectory(copy).label_file(1)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = broken(verify_run(copy))
    assert any("shard-00001" in text for text in found["every label file is its receipt's"])


def test_a_truncated_file_a_missing_one_and_a_damaged_receipt_are_broken(copy: Path) -> None:
    directory = RunDirectory(copy)
    directory.label_file(0).write_bytes(directory.label_file(0).read_bytes()[:-9])
    directory.label_file(1).unlink()
    directory.receipt_file(2).write_text("{")
    verdict = verify_run(copy)
    assert [text.split(":")[0] for text in broken(verdict)["every receipt is valid"]] == [
        "shard-00000",
        "shard-00001",
        "shard-00002",
    ]
    assert (verdict.done, verdict.pending, verdict.given_up, verdict.exit_code) == (0, 0, 0, 1)
    assert verdict.rules["every receipt is valid"].checked == 3


def test_a_file_that_a_launch_at_work_replaces_meanwhile_is_not_called_broken(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = verify.check_label_file

    def replace_and_check(directory: RunDirectory, shard: int, receipt: Receipt) -> Any:
        if shard == 1:
            for place in (directory.label_file, directory.receipt_file):
                place(shard).rename(place(shard, 1))
        return check(directory, shard, receipt)

    monkeypatch.setattr(verify, "check_label_file", replace_and_check)
    verdict = verify_run(copy)
    assert verdict.passed, verdict.as_table()
    assert verdict.unchecked == ["shard-00001.parquet: a launch at work has replaced it meanwhile"]


def do_again(directory: RunDirectory, shard: int) -> None:
    """What a launch with --retry-failed does to a shard's files."""
    receipt = json.loads(directory.receipt_file(shard).read_text())
    shutil.copy(directory.label_file(shard), directory.label_file(shard, 1))
    directory.receipt_file(shard, 1).write_text(json.dumps({**receipt, "generation": 1}))
    directory.label_file(shard).unlink()


def test_a_shard_done_again_while_receipts_are_read_is_not_called_broken(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, directory = receipts.read_many, RunDirectory(copy)

    def read_and_replace(*arguments: Any) -> Any:
        yield from read(*arguments)
        if directory.label_file(1).exists():
            do_again(directory, 1)

    monkeypatch.setattr(receipts, "read_many", read_and_replace)
    verdict = verify_run(copy)
    assert verdict.passed, verdict.as_table()


def test_a_launch_that_ends_after_the_receipts_were_read_leaves_no_broken_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(copy)
    shutil.copy(directory.label_file(1), directory.label_file(1, 1))  # its receipt comes next

    def end_launch(root: Path) -> None:
        do_again(directory, 1)

    monkeypatch.setattr(verify, "read_holder", end_launch)
    verdict = verify_run(copy)
    assert verdict.passed, verdict.as_table()


def test_a_damaged_file_is_broken_also_where_a_repair_of_its_shard_died_before_its_receipt(copy: Path) -> None:
    directory = RunDirectory(copy)
    data = directory.label_file(1).read_bytes()
    directory.label_file(1, 1).write_bytes(data)  # no receipt: generation 0 counts
    directory.label_file(1).write_bytes(data[:-4] + b"????")
    verdict = verify_run(copy)
    assert "every label file is its receipt's" in broken(verdict), verdict.as_table()
    assert (verdict.unchecked, verdict.exit_code) == ([], 1)


def test_shards_that_nobody_has_done_yet_are_pending_and_not_broken(tiny: TinyDataset, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run_pipeline(tiny.manifest, path, tiny_config(), progress=False, selection=Selection(shards="0-1"))
    RunDirectory(path).receipt_file(1).unlink()
    verdict = verify_run(path)

    assert verdict.passed
    assert (verdict.done, verdict.pending, verdict.exit_code) == (1, 2, 3)
    assert verdict.images == 3
    table = verdict.as_table()
    assert "shards: 1 done, 0 given up, 2 pending, 0 broken" in table
    assert "BROKEN" not in table
    assert table.endswith("what is done holds; 0 shards were given up, 2 are pending; see dto status")
    assert read_status(path).shards == {"done": 1, "failed": 0, "pending": 2}


def test_a_shard_that_was_given_up_is_named_so_and_the_exit_code_is_that_of_the_run(copy: Path) -> None:
    directory = RunDirectory(copy)
    directory.label_file(1).unlink()
    directory.receipt_file(1).unlink()
    record_failure(directory, Failure(1, 3, True, "it raised", "a:1", 5.0))
    verdict = verify_run(copy)

    assert verdict.passed
    assert (verdict.given_up, verdict.pending, verdict.exit_code) == (1, 0, 1)
    assert "1 given up" in verdict.as_table()


def test_a_receipt_that_counts_wrongly_is_found(copy: Path) -> None:
    edit_receipt(copy, 0, persons=99, person_status={"moved": 99}, rows=4, images=4, image_status={"optimized": 4})
    (text,) = broken(verify_run(copy))["every label file is its receipt's"]
    assert "rows 3, the receipt says 4" in text
    assert "`dto run --recheck` does the shard again" in text


def change(field: str, value: Callable[[Any], Any]) -> Spoil:
    """Changes a field of the first moved person of a shard: ``scene.NAME`` of the label as it was given."""

    def spoil(placed: list[PlacedScene]) -> None:
        item, person = first_moved(placed)
        values = getattr(item.scene if field.startswith("scene.") else item, field.removeprefix("scene."))
        values[person] = value(values[person])

    return spoil


def accept_all(placed: list[PlacedScene]) -> None:
    for item in placed:
        item.is_accepted = not item.is_accepted


def throw_far(placed: list[PlacedScene]) -> None:
    for field in ("transl", "scene.transl"):
        change(field, lambda transl: 1000 * transl)(placed)


GROW, LOSE = change("height_m", lambda height: 2.4), change("betas", lambda betas: np.nan)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (change("scene.transl", lambda transl: np.nextafter(transl, np.float32(9))), "transl_init is the input's"),
        (change("scene.pose", lambda pose: pose + 0.1), "pose is the input's"),
        (GROW, "height_m is the body's"),
        (change("transl", lambda transl: -transl), "people stand before the camera"),
        (change("person_status", lambda _: PersonStatus.TOO_TALL), "who was not moved keeps the label"),
        (accept_all, "is_accepted follows its rule"),
        (LOSE, "labels are finite"),
        (LOSE, "betas restored by beta_init"),
    ],
)
def test_a_wrong_label_is_found_and_its_row_is_named(copy: Path, spoil: Spoil, rule: str) -> None:
    rewrite_shard(copy, 1, spoil)
    found = broken(verify_run(copy))
    assert found[rule][0].startswith("shard-00001 row "), found


@pytest.mark.parametrize(
    ("spoil", "judgement"),
    [
        (GROW, "heights are human"),
        (change("transl", lambda transl: transl + np.array([1, 0, 0])), "joints keep their pixels"),
        (throw_far, "numbers are plausible"),
    ],
)
def test_a_doubtful_person_is_no_damage_and_comes_with_a_next_step(copy: Path, spoil: Spoil, judgement: str) -> None:
    """The labels are spoilt by hand, so some rules break too; the judgement itself is not among them."""
    rewrite_shard(copy, 1, spoil)
    verdict = verify_run(copy)
    assert judgement not in verdict.rules
    rule = verdict.judgements[judgement]
    assert rule.broken == 1
    assert rule.offences[0].startswith("shard-00001 row ")
    assert f"next: {rule.next_step}" in verdict.as_table()
    verdict.rules = {}
    verdict.rule("every receipt is valid")
    assert verdict.exit_code == 0
    assert "1 people are doubtful" in verdict.as_table()


def test_an_image_lost_or_told_twice_is_found(copy: Path) -> None:
    def repeat(placed: list[PlacedScene]) -> None:
        placed[2] = placed[0]

    rewrite_shard(copy, 2, repeat)
    found = broken(verify_run(copy))
    assert any("is missing" in text for text in found["rows are the manifest's"])
    assert any("2 rows" in text for text in found["every image has one row"])


@pytest.mark.parametrize(
    "name", ["shard-00099.parquet", "copy.parquet", "shard-00001.parquet.bak", "old/shard-00001.parquet"]
)
def test_a_stray_file_that_readers_of_the_folder_would_take_is_found(copy: Path, name: str) -> None:
    (copy / "labels" / name).parent.mkdir(exist_ok=True)
    shutil.copy(RunDirectory(copy).label_file(1), copy / "labels" / name)
    (offence,) = broken(verify_run(copy))["labels/ holds every shard once"]
    assert name in offence
    assert "move it elsewhere" in offence


def test_without_the_manifest_the_rest_is_checked_and_the_gap_is_told(
    run_dir: Path, tiny: TinyDataset, tmp_path: Path, copy: Path
) -> None:
    text = RunDirectory(copy).at("run.json").read_text().replace(str(tiny.manifest), str(tmp_path / "gone.parquet"))
    RunDirectory(copy).at("run.json").write_text(text)
    verdict = verify_run(copy)
    assert verdict.passed
    assert "gone.parquet" in verdict.unchecked[0]
    moved = shutil.copy(tiny.manifest, tmp_path / "moved.parquet")
    assert verify_run(copy, moved).unchecked == []


def test_another_body_model_is_not_used(copy: Path) -> None:
    for shard in range(3):
        rewrite_shard(copy, shard, lambda placed: None, {"body_sha256": "0" * 64})
    verdict = verify_run(copy)
    assert "height_m is the body's" not in verdict.rules
    assert "--body" in verdict.unchecked[0]


def test_another_manifest_and_a_folder_that_is_no_run_are_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist"):
        verify_run(run_dir, tmp_path / "none.parquet")
    with pytest.raises(RunDirectoryError, match=r"no run\.json"):
        verify_run(tmp_path)
