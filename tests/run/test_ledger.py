"""What the driver remembers and shows while it works."""

import json
import logging
from contextlib import closing
from types import SimpleNamespace

import pytest

from dto_pipeline.config import RunConfig, load_config
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import InFlight, write_note
from dto_pipeline.run.driver import FileLedger
from dto_pipeline.run.folder import RunDirectory, RunScan
from dto_pipeline.run.identity import identify_run
from dto_pipeline.run.loop import FailedAttempt, WorkerCounts
from dto_pipeline.run.plan import Retry, Selection, survey_run
from tests.run.fakes import make_manifest, make_receipt


@pytest.fixture
def run(tmp_path):
    """Four shards of four images, nothing done; the ledger's parts are at hand."""
    manifest = make_manifest(4)
    directory = RunDirectory(tmp_path / "run")
    identity = identify_run(load_config(overrides=["body.model_path=demo"]), manifest)
    files.open_run(directory, identity)
    plan = survey_run(directory, identity, manifest, RunScan(directory.root), Selection(), Retry())
    ledger = FileLedger(directory, plan, RunConfig(), progress=False)
    return SimpleNamespace(directory=directory, ledger=ledger, plan=plan)


def test_every_shard_is_one_log_line_with_numbers_for_machines(run, caplog):
    with caplog.at_level(logging.INFO):
        run.ledger.shard_done(make_receipt(2, wall_s=2.0))

    (record,) = caplog.records
    assert "shard 2 done in 2.0 s by here:1, attempt 1: 4 images" in record.getMessage()
    assert (record.facts["images_per_s"], record.facts["failed_images"]) == (2.0, 1)


def test_a_failed_attempt_is_kept_on_disk_with_deaths_per_image(run):
    write_note(run.directory, InFlight(1, 3, "x"))
    run.ledger.allows_another(1, 3)
    run.ledger.attempt_failed(FailedAttempt(1, 3, False), "w", "it died", "trace")

    failure = files.read_shard_failure(run.directory, 1)
    assert failure is not None
    assert (failure.attempts, failure.deaths, failure.suspects) == (3, 1, {"x": 1})
    run.ledger.shard_done(make_receipt(1))
    assert files.read_shard_failure(run.directory, 1) is None


def test_events_of_a_launch_are_counted(run):
    run.ledger.attempt_failed(FailedAttempt(1, 1, False), "w", "it raised", "")
    run.ledger.attempt_failed(FailedAttempt(1, 2, True), "w", "it raised", "")
    run.ledger.worker_lost("w", "it died")
    run.ledger.shard_done(make_receipt(0, adopted=True))

    assert (run.ledger.counts.failed_attempts, run.ledger.counts.workers_lost) == (2, 1)


def test_the_progress_line_shows_workers_and_why_others_are_missing(run, capsys, caplog):
    with closing(FileLedger(run.directory, run.plan, RunConfig(), progress=True)) as ledger:
        ledger._draw_every = 0

        def line(**now: int) -> str:
            capsys.readouterr()
            ledger.tick(WorkerCounts(**{"wanted": 2, **now}))
            return capsys.readouterr().err

        assert "workers: 0 of 2 (waiting for CPUs and GPUs), failed" in line()
        assert "workers: 0 of 2 (2 loading, 59 s), failed" in line(loading=2, idle_s=59)
        assert "no worker" not in caplog.text
        assert "workers: 0 of 2 (waiting for CPUs and GPUs, 60 s), failed" in line(idle_s=60)
        assert "no worker has been ready for 60 s: are the CPUs" in caplog.text
        assert "workers: 1 of 2 (1 loading), failed: 0 shards, 0 images" in line(working=1, loading=1)
        assert "workers: 0 of 2 (1 leaving with their nodes), failed" in line(leaving=1)
        ledger.attempt_failed(FailedAttempt(1, 3, True), "w", "it died", "")
        told = line(working=2, images=3)
        assert "3/16" in told
        assert "workers: 2, failed: 1 shards, 0 images" in told


def test_json_lines_carry_facts_and_traces(tmp_path, capsys):
    from dto_pipeline.terminal import configure_logs

    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logs("warning", str(tmp_path / "logs" / "run.jsonl"))
        logging.getLogger("x").info("shard %d", 3, extra={"facts": {"shard": 3, "wall_s": 1.5}})
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logging.getLogger("x").exception("bad")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:], root.level = before
    first, second = map(json.loads, (tmp_path / "logs" / "run.jsonl").read_text().splitlines())

    assert (first["message"], first["shard"], first["wall_s"], first["level"]) == ("shard 3", 3, 1.5, "info")
    assert first["time"].endswith("+00:00")
    assert "ZeroDivisionError" in second["trace"]
    assert "shard 3" not in capsys.readouterr().err  # people see warnings only
