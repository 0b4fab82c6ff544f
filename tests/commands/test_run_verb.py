"""`dto run` and `dto status` as people use them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dto_pipeline.cli import main
from dto_pipeline.config import load_config
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.report import describe_driver
from tests.tiny_dataset import write_tiny_dataset

REPOSITORY = Path(__file__).parents[2]
CALM = ("--workers=0", "--set=run.device=cpu", "--set=run.max_failed_images=1", "--quiet")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, body):
    """Six images in three shards; one has no picture."""
    tiny = write_tiny_dataset(tmp_path_factory.mktemp("verb"), body, images=6, shard_images=2, broken=False)
    next(tiny.manifest.parent.rglob("000003.jpg")).unlink()
    return str(tiny.manifest)


@pytest.fixture
def run_dir(tmp_path):
    return str(tmp_path / "run")


def test_a_dry_run_then_a_part_then_the_rest(manifest, run_dir, capsys):
    assert main(["run", manifest, "-o", run_dir, *CALM, "--dry-run"]) == 0
    assert "3 shards selected" in capsys.readouterr().out
    assert not Path(run_dir).exists()

    assert main(["run", manifest, "-o", run_dir, *CALM, "--shards", "0-1"]) == 3
    out = capsys.readouterr().out
    assert "1 shards were not selected" in out
    assert "use --retry-failed" in out
    assert main(["run", manifest, "-o", run_dir, *CALM, "--subset", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done_now"] == 1


def test_too_many_given_up_shards_are_no_mistake_of_the_user(manifest, run_dir, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("it raised")

    monkeypatch.setattr("dto_pipeline.run.worker.ShardRunner.run", fail)
    stop = ["--set", "run.max_failed_shards=1", "--set", "run.max_attempts=1"]
    assert main(["run", manifest, "-o", run_dir, *CALM, *stop]) == 1
    assert "2 shards were given up, more than 1; the last error: RuntimeError: it raised" in capsys.readouterr().err
    assert main(["run", manifest, "-o", run_dir, *CALM, "--dry-run"]) == 0
    assert "1 pending, 2 given up" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--shards", "7"], ["--subset", "coco"], ["--status", "depth_missing"]])
def test_what_means_nothing_is_refused_in_one_sentence(manifest, run_dir, capsys, options):
    assert main(["run", manifest, "-o", run_dir, *CALM, *options]) == 2
    assert capsys.readouterr().err.startswith("dto run: ")


def test_json_lines_are_written_beside_the_run(manifest, run_dir, tmp_path):
    assert main(["run", manifest, "-o", run_dir, *CALM, "--log-json", str(tmp_path / "log.jsonl")]) == 0

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sorted(line["shard"] for line in lines if "outcome" in line) == [0, 1, 2]


def test_what_ray_prints_on_standard_output_goes_to_the_log_and_json_stays_json(manifest, run_dir, capsys, monkeypatch):
    def run_and_tell(*arguments, **options):
        print("\x1b[33m(raylet)\x1b[0m A worker died", flush=True)  # as Ray's listener does while a run goes on
        return run_pipeline(*arguments, **options)

    monkeypatch.setattr("dto_pipeline.run.driver.run_pipeline", run_and_tell)
    assert main(["run", manifest, "-o", run_dir, *CALM, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["done_now"] == 3
    assert "WARNING Ray: (raylet) A worker died" in captured.err


def test_watching_ends_when_nothing_is_pending_and_its_exit_code_says_how(manifest, run_dir, capsys):
    main(["run", manifest, "-o", run_dir, *CALM, "--limit", "2"])
    config = load_config(overrides=["run.workers=0", "run.device=cpu"])
    rest = threading.Timer(0.3, run_pipeline, [manifest, run_dir, config], {"progress": False})
    capsys.readouterr()
    rest.start()
    code = main(["status", run_dir, "--watch", "0.2"])
    rest.join()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shards  ")]

    assert code == 0
    assert "2 pending" in lines[0]
    assert "0 pending" in lines[-1]


def test_a_watch_in_json_is_one_object_a_line(manifest, run_dir, capsys):
    main(["run", manifest, "-o", run_dir, *CALM])
    capsys.readouterr()
    assert main(["status", run_dir, "--watch", "--json"]) == 0

    status = json.loads(capsys.readouterr().out)
    assert status["shards"] == {"done": 3, "failed": 0, "pending": 0}
    assert status["last_receipt_s"] >= 0


def test_the_status_says_what_to_make_of_a_driver():
    assert "driver died" in describe_driver("gone", pending=3, given_up=0)
    assert "no driver works on it" in describe_driver(None, pending=3, given_up=0)
    assert describe_driver("alive", pending=3, given_up=0) == ""
    assert "--retry-failed" in describe_driver(None, pending=0, given_up=1)
    assert describe_driver(None, pending=0, given_up=0) == ""


@pytest.mark.slow
def test_a_driver_that_is_asked_to_end_leaves_in_good_order_and_charges_nobody(manifest, run_dir):
    script = "from dto_pipeline.cli import interrupt_on_sigterm as leaving; "
    script += "from tests.run.chaos import main\nwith leaving(): main()"
    command = [sys.executable, "-c", script, manifest, run_dir, "0", "0.5"]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 60
        while not list(Path(run_dir).glob("receipts/*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(driver.pid, signal.SIGTERM)
        _, said = driver.communicate(timeout=60)

    directory = RunDirectory(Path(run_dir))
    assert "KeyboardInterrupt" in said
    assert list(Path(run_dir).glob("failures/*")) == []
    assert main(["status", run_dir]) == 0
    assert list(directory.at("labels").glob(".*")) == []
