"""Whole runs in this process: resume, adoption, refusal, failures."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dto_pipeline.data.labels import read_labels
from dto_pipeline.run import folder as files
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, RunDirectoryError, RunMismatch
from dto_pipeline.run.loop import RunAborted
from dto_pipeline.run.report import RunSummary, read_status
from tests.run.chaos import RAISE, RAISE_ONCE, ChaosRunner, label_bytes, read_failure, read_receipt, tiny_config
from tests.tiny_dataset import write_tiny_dataset

SHARDS = 6


@dataclass
class Starter:
    """Starts (again) the one run of a test."""

    manifest: Path
    directory: RunDirectory

    def __call__(self, chaos=None, config=None, manifest=None, **options) -> RunSummary:
        manifest, config = manifest or self.manifest, config or tiny_config()
        runner = chaos and ChaosRunner(config, manifest, self.directory.root, **chaos)
        return run_pipeline(manifest, self.directory.root, config, progress=False, runner=runner, **options)


@pytest.fixture
def start(tiny, tmp_path):
    return Starter(tiny.manifest, RunDirectory(tmp_path / "run"))


@pytest.fixture
def complete(start):
    """The same, after a first complete start."""
    start()
    return start


def _stamps(directory):
    return {path: path.stat().st_mtime_ns for path in directory.root.rglob("shard-*")}


def test_every_image_of_the_manifest_leaves_with_one_row_in_order(complete, tiny):
    tables = [read_labels(complete.directory.label_file(shard)) for shard in range(SHARDS)]

    ids = [image_id for table in tables for image_id in table.column("image_id").to_pylist()]
    assert ids == [f"tiny/{number:06d}.jpg" for number in range(tiny.images)]
    assert sum(sum(table.column("num_persons").to_pylist()) for table in tables) == tiny.persons


def test_broken_input_costs_its_own_item_and_is_counted_and_crowds_are_really_placed(start):
    summary = start()

    assert summary.exit_code == 0
    assert json.loads(json.dumps(summary.to_json()))["exit_code"] == 0
    assert summary.failed_images == 3
    failures = {"image_missing": 1, "image_corrupt": 1, "depth_invalid": 1}
    assert {word: summary.image_status[word] for word in failures} == failures
    assert summary.person_status["invalid_label"] == 1
    assert sum(summary.image_status.values()) == summary.images
    assert sum(summary.person_status.values()) == summary.persons
    assert summary.image_status["optimized"] > 6
    assert summary.person_status["moved"] > 12


def test_a_finished_run_has_nothing_to_do_and_is_not_touched(complete):
    before = _stamps(complete.directory)

    summary = complete()

    assert summary.nothing_to_do
    assert (summary.done_before, summary.done_now, summary.exit_code) == (SHARDS, 0, 0)
    assert _stamps(complete.directory) == before


_NOTHING_TO_DO = """
import sys, time
from dto_pipeline.config import load_config
from dto_pipeline.run.loop import RunAborted
from dto_pipeline.run.driver import run_pipeline
start = time.perf_counter()
summary = run_pipeline(sys.argv[1], sys.argv[2], load_config(overrides=["run.device=cpu"]), progress=False)
assert summary.nothing_to_do
print(time.perf_counter() - start, "ray" in sys.modules)
"""


def test_a_finished_run_answers_at_once_and_never_loads_ray(complete, tiny):
    command = [sys.executable, "-c", _NOTHING_TO_DO, str(tiny.manifest), str(complete.directory.root)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert float(answer[0]) < 0.5
    assert answer[1] == "False"


def test_labels_do_not_depend_on_batch_size_or_threads(start, undisturbed):
    start(config=tiny_config(batch_images=8, decode_threads=4))

    assert label_bytes(start.directory.root) == undisturbed


def test_labels_do_not_depend_on_where_the_data_lies(start, tiny, tmp_path, undisturbed):
    for folder in ("images", "depth"):
        shutil.copytree(tiny.dataset.root / folder, tmp_path / "moved" / folder)
    start(images_root=tmp_path / "moved/images", depth_root=tmp_path / "moved/depth")

    assert label_bytes(start.directory.root) == undisturbed


def test_a_lost_receipt_is_written_again_without_doing_the_work_and_counts_the_same(complete, undisturbed):
    path, label = complete.directory.receipt_file(2), complete.directory.label_file(2)
    first, before = read_receipt(path), label.stat().st_mtime_ns
    path.unlink()

    assert complete().done_now == 1
    again = read_receipt(path)
    assert again.adopted
    for name in ("rows", "images", "persons", "image_status", "person_status", "label_sha256", "shard_key"):
        assert getattr(again, name) == getattr(first, name)
    assert label.stat().st_mtime_ns == before
    assert label_bytes(complete.directory.root) == undisturbed


@pytest.mark.parametrize("keep_receipt", [True, False])
def test_a_truncated_label_file_is_done_again(complete, undisturbed, keep_receipt):
    label = complete.directory.label_file(3)
    label.write_bytes(label.read_bytes()[:1000])
    if not keep_receipt:
        complete.directory.receipt_file(3).unlink()

    assert complete().done_now == 1
    assert not read_receipt(complete.directory.receipt_file(3, 1)).adopted
    assert label_bytes(complete.directory.root) == undisturbed


class _Litterer(ChaosRunner):
    """Leaves what a worker leaves that is killed while it writes."""

    def run(self, shard, attempt=1, following=None):
        (Path(self.directory.at("labels")) / f".shard-{shard:05d}.parquet.tmp-{'0' * 32}").write_bytes(b"half")
        return super().run(shard, attempt, following)


def test_leftovers_of_workers_that_died_on_the_way_are_gone_when_the_run_ends(start, undisturbed):
    runner = _Litterer(tiny_config(), start.manifest, start.directory.root)
    run_pipeline(start.manifest, start.directory.root, tiny_config(), progress=False, runner=runner)

    assert label_bytes(start.directory.root) == undisturbed


class _Eraser(ChaosRunner):
    """Somebody clears away the run's record of itself."""

    def run(self, shard, attempt=1, following=None):
        Path(self.directory.at("run.json")).unlink(missing_ok=True)
        return super().run(shard, attempt, following)


def test_a_run_whose_record_was_removed_on_the_way_is_not_called_done(start, undisturbed):
    runner = _Eraser(tiny_config(), start.manifest, start.directory.root)
    with pytest.raises(RunDirectoryError, match=r"holds no run\.json; `dto run` makes one"):
        run_pipeline(start.manifest, start.directory.root, tiny_config(), progress=False, runner=runner)
    start()
    assert label_bytes(start.directory.root) == undisturbed


def test_a_changed_manifest_is_refused(complete, body, tmp_path):
    other = write_tiny_dataset(tmp_path / "other", body, images=18, shard_images=3, people=2)

    with pytest.raises(RunMismatch, match=r"put its manifest back[\s\S]*manifest\.fingerprint"):
        complete(manifest=other.manifest)


def test_a_shard_that_raises_once_is_done_at_the_second_try(start, undisturbed):
    summary = start({"faults": {2: RAISE_ONCE}})

    assert summary.exit_code == 0
    assert read_receipt(start.directory.receipt_file(2)).attempt == 2
    assert label_bytes(start.directory.root) == undisturbed
    assert list(start.directory.at("failures").iterdir()) == []


def test_a_poison_shard_is_given_up_until_a_retry_is_asked_for_and_all_others_are_done(start, undisturbed):
    summary = start({"faults": {2: RAISE}})

    assert (summary.done_now, summary.exit_code) == (SHARDS - 1, 1)
    assert summary.failed_shards == {2: "RuntimeError: shard 2 raised"}
    failure = read_failure(start.directory.failure_file(2))
    assert (failure.attempts, failure.given_up) == (3, True)
    assert "Traceback" in failure.detail
    again = start()
    assert again.nothing_to_do
    assert (list(again.failed_shards), again.exit_code) == ([2], 1)
    assert start(retry_failed=True).exit_code == 0
    assert label_bytes(start.directory.root) == undisturbed


def test_attempts_of_an_earlier_launch_count(start):
    start({"faults": {2: RAISE}}, config=tiny_config(max_attempts=1))
    path = start.directory.failure_file(2)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "given_up": False, "attempts": 2}))

    start({"faults": {2: RAISE}})
    assert read_failure(path).attempts == 3


def test_a_damaged_failure_record_is_named_and_counted_and_stops_nothing(start, undisturbed, caplog):
    start({"faults": {2: RAISE}})
    start.directory.failure_file(2).write_text("{")
    assert "damaged  failure record of shard 2" in read_status(start.directory.root).as_table()

    summary = start()
    assert summary.exit_code == 0
    assert "shard-00002.json is not JSON" in caplog.text
    assert label_bytes(start.directory.root) == undisturbed
    assert list(start.directory.at("failures").iterdir()) == []


def test_a_damaged_failure_record_of_a_finished_shard_does_not_stop_its_repair(start, undisturbed):
    start()
    start.directory.failure_file(0).write_text("{")

    summary = start(retry_failed=True)
    assert summary.exit_code == 0
    assert label_bytes(start.directory.root) == undisturbed


def test_a_full_disk_stops_the_run_with_advice_and_a_later_start_finishes(start, undisturbed, monkeypatch):
    def full(directory, failure):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "record_failure", full)
    with pytest.raises(RunAborted, match=r"No space left.*start again"):
        start({"faults": {2: RAISE}})

    assert start().exit_code == 0
    assert label_bytes(start.directory.root) == undisturbed


def test_the_summary_reads_like_a_summary_and_the_status_agrees(start):
    summary = start({"faults": {2: RAISE}})
    table, status = summary.as_table(), read_status(start.directory.root)

    assert "5 done now, 0 before, 1 failed, of 6" in table
    assert "shard 2: RuntimeError: shard 2 raised" in table
    assert "check --images" in table
    assert "nothing to do" not in table
    assert "nothing to do" in start().as_table()
    assert (status.image_status, status.person_status) == (summary.image_status, summary.person_status)
    assert (status.shards, status.eta_s) == ({"done": SHARDS - 1, "failed": 1, "pending": 0}, 0.0)


def test_a_label_file_with_a_changed_byte_is_not_adopted(complete, undisturbed):
    label = complete.directory.label_file(3)
    complete.directory.receipt_file(3).unlink()
    content = bytearray(label.read_bytes())
    content[3000] ^= 1
    label.write_bytes(content)

    complete()
    assert label_bytes(complete.directory.root) == undisturbed


def test_receipts_tell_where_the_time_went(complete):
    stages = read_receipt(complete.directory.receipt_file(0)).stage_seconds

    assert {"body", "rasterizer", "evidence", "solver", "write"} <= stages.keys()
    assert all(seconds >= 0 for seconds in stages.values())


def test_a_damaged_manifest_page_stops_its_shard_instead_of_becoming_other_labels(tmp_path, body):
    tiny = write_tiny_dataset(tmp_path / "data", body, images=2, shard_images=2, broken=False)
    data = bytearray(tiny.manifest.read_bytes())
    data[300:400] = bytes(byte ^ 0xFF for byte in data[300:400])  # inside a page, far from the footer
    tiny.manifest.write_bytes(bytes(data))
    summary = Starter(tiny.manifest, RunDirectory(tmp_path / "run"))()
    assert summary.exit_code == 1
    assert list(summary.failed_shards) == [0]


def test_a_body_model_that_is_not_there_is_said_before_a_worker_starts(start):
    config = tiny_config()
    config = dataclasses.replace(config, body=dataclasses.replace(config.body, model_path="nowhere"))
    with pytest.raises(files.RunDirectoryError, match="dto body import"):
        start(config=config)
