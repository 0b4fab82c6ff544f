"""A run on disk: its identity, its records, what counts as done."""

import json
import os
import socket
import subprocess
import sys

import pytest

from dto_pipeline.config import load_config
from dto_pipeline.data.files import json_bytes, temporary_name
from dto_pipeline.data.receipts import receipt_name
from dto_pipeline.data.storage import base_name
from dto_pipeline.run import folder as files
from dto_pipeline.run import identity as identities
from dto_pipeline.run.folder import Failure, RunDirectory, RunDirectoryError, RunMismatch
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.lease import DriverLock, RunLocked, read_holder
from tests.run.fakes import make_manifest, make_receipt

HERE = (os.getpid(), socket.gethostname())
NAMED = load_config(overrides=["body.model_path=demo"])


def _identity(config=None, **changes):
    return identify_run(config or NAMED, make_manifest(**changes))


@pytest.fixture
def run(tmp_path):
    """A fresh run and its identity."""
    directory = RunDirectory(tmp_path / "run")
    identity = _identity()
    files.open_run(directory, identity)
    return directory, identity


def _finish(run, shard: int, label: bytes = b"label", **changes):
    directory, identity = run
    receipt = make_receipt(shard, config_hash=identity.config_hash, **changes)
    directory.label_file(shard, receipt.generation).write_bytes(label)
    directory.store.create(receipt_name(shard, receipt.generation), json_bytes(receipt.to_dict()))
    return receipt


def test_a_run_reopened_with_the_same_settings_is_the_same_run(run, tmp_path):
    directory, identity = run

    assert files.open_run(directory, _identity()) == identity


def test_the_manifest_may_have_moved_and_the_run_room_may_change(run, tmp_path):
    directory, identity = run
    moved = _identity(
        load_config(overrides=["run.workers=7", "body.model_path=demo"]), path=tmp_path / "elsewhere.parquet"
    )

    assert files.open_run(directory, moved) == identity


def test_every_difference_is_named_on_its_own_line(run, tmp_path):
    _finish(run, 0)
    config = load_config(overrides=["body.model_path=demo", "solver.max_height=2.2", "prior.gender_prior=false"])

    with pytest.raises(RunMismatch) as caught:
        files.open_run(run[0], _identity(config, fingerprint="other"))

    lines = str(caught.value).splitlines()[1:]
    assert lines == [
        "prior.gender_prior: True -> False",
        "solver.max_height: 2.1 -> 2.2",
        "manifest.fingerprint: 'manifest' -> 'other'",
    ]


def test_another_solver_is_one_difference_and_not_all_of_its_options(run, tmp_path):
    _finish(run, 0)
    config = load_config(overrides=["body.model_path=demo", "solver.mode=joint"])

    with pytest.raises(RunMismatch) as caught:
        files.open_run(run[0], _identity(config))

    assert str(caught.value).splitlines()[1:] == ["solver.mode: 'paper' -> 'joint'"]


def test_another_library_version_is_refused(run, tmp_path, monkeypatch):
    _finish(run, 0)
    monkeypatch.setattr(identities, "version", lambda name: "0.0" if name == "torch" else "1.0")

    with pytest.raises(RunMismatch, match=r"install the recorded versions[\s\S]*versions.torch: '.*' -> '0\.0'"):
        files.open_run(run[0], _identity())


def test_a_folder_without_run_json_is_not_a_run(tmp_path):
    with pytest.raises(RunDirectoryError, match="holds no run"):
        files.read_identity(RunDirectory(tmp_path))


def test_a_receipt_with_its_label_file_means_done(run):
    receipt = _finish(run, 1)

    scan = files.scan_run(*run)
    assert scan.done == {1: receipt}
    assert not scan.void
    assert not scan.failures


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d: d.receipt_file(1).write_text('{"schema": '), "not JSON"),
        (lambda d: d.receipt_file(1).write_text('{"schema": "x"}'), "not a dto-receipt/1"),
        (lambda d: d.receipt_file(1).write_text('{"schema": "dto-receipt/1"}'), "lacks"),
        (lambda d: d.receipt_file(1).rename(d.receipt_file(2)), "of shard 1"),
        (lambda d: d.receipt_file(1).rename(d.receipt_file(1, 1)), "of shard 1, generation 0"),
        (lambda d: d.label_file(1).unlink(), "missing"),
        (lambda d: d.label_file(1).write_bytes(b"lab"), "3 bytes, the receipt says 5"),
    ],
)
def test_a_receipt_that_does_not_hold_does_not_count(run, damage, reason):
    _finish(run, 1)
    damage(run[0])

    scan = files.scan_run(*run)

    assert not scan.done
    assert reason in " ".join(scan.void.values())


def test_a_receipt_that_does_not_hold_is_named_beside_files_that_are_no_receipts(run):
    _finish(run, 1)
    run[0].label_file(1).unlink()
    (run[0].at("receipts") / f".shard-00002.json.tmp-{'f' * 32}").write_bytes(b"half")

    assert files.scan_run(*run).void == {1: "its label file is missing"}


def test_a_receipt_of_another_config_does_not_count(run):
    _finish(run, 1, manifest_fingerprint="other")

    assert "another config, body model, network or manifest" in files.scan_run(*run).void[1]


def test_of_two_generations_the_newer_one_counts_and_the_other_label_file_goes(run):
    _finish(run, 1)
    _finish(run, 2)
    newer = _finish(run, 1, generation=1)

    scan = files.scan_run(*run)
    assert scan.done[1] == newer
    assert [base_name(path) for path in scan.files.values()] == ["shard-00001.r1.parquet", "shard-00002.parquet"]
    files.remove_surplus(run[0], scan)
    assert sorted(path.name for path in run[0].at("labels").iterdir()) == [
        "shard-00001.r1.parquet",
        "shard-00002.parquet",
    ]
    assert files.scan_run(*run).surplus == ()


def test_a_newer_generation_that_does_not_hold_leaves_the_older_one_counting(run):
    older = _finish(run, 1)
    _finish(run, 1, generation=1)
    run[0].label_file(1, 1).write_bytes(b"cut")

    scan = files.scan_run(*run)
    assert (scan.done, scan.void) == ({1: older}, {})


def test_a_failure_never_counts_as_done_and_yields_to_a_receipt(run):
    files.record_failure(run[0], Failure(1, 2, True, "it raised", "a:1", 5.0))
    assert files.scan_run(*run).failures[1].attempts == 2

    _finish(run, 1)
    assert files.scan_run(*run).failures == {}


def test_a_place_that_cannot_hold_a_run_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RunDirectoryError, match="choose another"):
        RunDirectory(tmp_path / "file" / "run").create_folders()


_EDITED = {**Failure(1, 2, True, "it raised", "a:1", 5.0).to_dict(), "attempts": "two"}


_MISCOUNTED = {**Failure(1, 2, True, "it raised", "a:1", 5.0).to_dict(), "suspects": {"x": "2"}}


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"schema": "dto-failure/1"}', json.dumps(_EDITED), json.dumps(_MISCOUNTED)]
)
def test_a_damaged_failure_record_leaves_the_shard_pending(run, text):
    run[0].failure_file(1).write_text(text)
    scan = files.scan_run(*run)

    assert scan.failures == {}
    assert "shard-00001.json" in scan.unreadable[1]


def test_sweeping_takes_leftovers_and_nothing_else(run):
    _finish(run, 1)
    (run[0].at("labels") / f".shard-00002.parquet.tmp-{'0' * 32}").write_bytes(b"half")
    (run[0].at("receipts") / f".shard-00002.json.tmp-{'f' * 32}").write_bytes(b"half")

    (run[0].at("failures") / "shard-00002.in-flight.json").write_text("{}")
    files.sweep_leftovers(run[0])
    assert sorted(path.name for path in run[0].root.rglob("*.*")) == [
        "run.json",
        "shard-00001.json",
        "shard-00001.parquet",
    ]


def test_sweeping_spares_what_a_second_driver_writes_before_it_is_refused(run):
    living, dead = temporary_name("probe"), f".probe.tmp-{_mark_of_the_dead()}{'0' * 16}"
    for folder in ("", "lease", "labels"):
        for name in (living, dead):
            (run[0].root / folder / name).write_bytes(b"")

    files.sweep_leftovers(run[0])

    left = {folder: [path.name for path in (run[0].root / folder).glob(".*")] for folder in ("", "lease", "labels")}
    assert left == {"": [living], "lease": [living], "labels": []}


def _mark_of_the_dead() -> str:
    script = "from dto_pipeline.data.files import temporary_name; print(temporary_name('x'))"
    name = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    return name[-32:-16]


def _holder(path):
    record = read_holder(path)
    return record and (record.pid, record.host)


_HOLD = "import sys; from dto_pipeline.run.lease import DriverLock; from pathlib import Path\n" + (
    "with DriverLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
)


def test_the_lock_of_a_killed_driver_is_taken_over(tmp_path):
    path = tmp_path
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunLocked):
            DriverLock(path).__enter__()
        holder.kill()
    record = read_holder(path)
    assert record is not None
    assert (record.pid, record.state) == (holder.pid, "gone")

    with DriverLock(path):
        assert _holder(path) == HERE
    assert read_holder(path) is None
