"""What the files of a run say about it."""

import json
from dataclasses import replace

import pytest

from dto_pipeline.config import load_config
from dto_pipeline.run import folder as files
from dto_pipeline.run.folder import Failure, RunDirectory
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.report import format_duration, images_per_second, read_status
from tests.run.fakes import make_manifest, make_receipt


@pytest.fixture
def run(tmp_path):
    """Five shards of four images: 0 and 1 done, 2 given up, 3 tried once, 4 untouched."""
    directory = RunDirectory(tmp_path / "run")
    identity = identify_run(load_config(overrides=["body.model_path=demo"]), make_manifest(5))
    files.open_run(directory, identity)
    for shard in (0, 1):
        directory.label_file(shard).write_bytes(b"label")
        receipt = make_receipt(shard, config_hash=identity.config_hash)
        directory.receipt_file(shard).write_text(json.dumps(receipt.to_dict()))
    files.record_failure(directory, Failure(2, 3, True, "it raised", "a:1", 5.0))
    files.record_failure(directory, Failure(3, 1, False, "it died", "a:1", 5.0))
    return directory


def test_every_shard_is_done_failed_or_pending(run):
    assert read_status(run.root).shards == {"done": 2, "failed": 1, "pending": 2}


def test_statuses_of_images_and_persons_are_summed_over_receipts(run):
    status = read_status(run.root)

    assert status.image_status == {"image_missing": 2, "optimized": 6}
    assert status.person_status == {"moved": 14, "not_run": 4}
    assert (status.images_done, status.images_total, status.persons_done, status.persons_total) == (8, 20, 18, 45)


def test_speed_and_eta_come_from_receipts_alone(run):
    status = read_status(run.root)

    assert status.images_per_s == pytest.approx(4.0)  # two shards, one second each, one after the other
    assert status.eta_s == pytest.approx(2.0)  # two pending shards; the one given up is not waited for
    assert "ETA      2 s once a driver works on it" in status.as_table()


def test_what_is_done_says_nothing_of_a_time_to_come(run):
    status = replace(read_status(run.root), eta_s=0.0)

    assert "ETA" not in status.as_table()


def test_a_night_between_two_starts_does_not_slow_the_run_down():
    evening = [make_receipt(n, finished_at=1000.0 + n) for n in range(10)]
    morning = [make_receipt(n, finished_at=1800.0 + n) for n in range(10)]

    assert images_per_second([*evening, *morning]) == pytest.approx(images_per_second(morning))


def test_two_workers_at_once_are_twice_as_fast():
    receipts = [make_receipt(n, finished_at=1000.0 + n // 2) for n in range(20)]

    assert images_per_second(receipts) == pytest.approx(8.0)


def test_adopted_shards_say_nothing_about_speed(run):
    assert images_per_second([make_receipt(0, adopted=True)]) == 0.0


def test_a_receipt_that_does_not_hold_is_pending_and_explained(run):
    run.label_file(1).write_bytes(b"cut")

    status = read_status(run.root)
    assert status.shards == {"done": 1, "failed": 1, "pending": 3}
    assert "3 bytes" in status.void[1]


def test_the_table_names_statuses_with_advice_and_failed_shards_with_their_error(run):
    status = read_status(run.root)
    table = status.as_table()

    assert json.loads(json.dumps(status.to_json()))["failed"][0]["shard"] == 2
    assert "check --images" in table
    assert "shard 2 after 3 attempts: it raised" in table
    assert "2 done, 1 failed, 2 pending" in table


def test_reading_the_status_changes_nothing(run):
    before = sorted((path, path.stat().st_mtime_ns) for path in run.root.rglob("*"))
    read_status(run.root)

    assert sorted((path, path.stat().st_mtime_ns) for path in run.root.rglob("*")) == before


def test_a_driver_is_seen_while_it_holds_the_run(run):
    assert read_status(run.root).driver == "none"
    with run.lock():
        assert "alive" in read_status(run.root).driver


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "unknown"), (7.2, "7 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations_read_like_durations(seconds, text):
    assert format_duration(seconds) == text
