"""Real Ray actors and real SIGKILLs: whatever dies, the labels are those of an undisturbed run."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dto_pipeline.data.receipts import read_receipt
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.loop import RunAborted
from dto_pipeline.run.report import RunSummary
from tests.run.chaos import DIE, HANG, RAISE, STOP, ChaosRunner, label_bytes, read_failure, remote_labels, tiny_config
from tests.run.poison import POISON, PoisonRunner, check_poisoned
from tests.s3_server import ENVIRONMENT, s3_client, s3_uri, serve_s3

pytestmark = pytest.mark.slow
SHARDS = 6
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Starter:
    """Starts (again) the one run of a test with two Ray workers."""

    manifest: Path
    directory: RunDirectory

    def __call__(self, retry_failed=False, timeout_s=1800.0, **chaos) -> RunSummary:
        config = tiny_config(workers=2, shard_timeout_s=timeout_s)
        runner = ChaosRunner(config, self.manifest, self.directory.root, **chaos)
        return run_pipeline(
            self.manifest, self.directory.root, config, retry_failed=retry_failed, progress=False, runner=runner
        )


@pytest.fixture
def start(tiny, tmp_path, connected):
    return Starter(tiny.manifest, RunDirectory(tmp_path / "run"))


def _wait_for(condition, seconds=180.0):  # on a busy machine; nobody waits so long otherwise
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def _first_receipt(directory: RunDirectory):
    """The first receipt that appears."""
    path = _wait_for(lambda: next(iter(sorted(directory.at("receipts").glob("shard-*.json"))), None))
    return read_receipt(path)


def _pid(worker: str) -> int:
    return int(worker.rpartition(":")[2])


def test_two_workers_write_what_one_process_writes_and_faults_cost_their_own_shard(start, undisturbed):
    summary = start(faults={1: RAISE, 4: DIE})

    assert summary.failed_shards.keys() == {1, 4}
    assert "shard 1 raised" in summary.failed_shards[1]
    assert "died" in summary.failed_shards[4]
    assert read_failure(start.directory.failure_file(4)).attempts == 3
    assert (summary.done_now, summary.exit_code) == (SHARDS - 2, 1)
    assert start(retry_failed=True).exit_code == 0
    assert label_bytes(start.directory.root) == undisturbed


def test_a_worker_killed_in_the_middle_is_replaced(start, undisturbed, caplog):
    victims = []

    def kill():
        victims.append(_first_receipt(start.directory).worker)
        os.kill(_pid(victims[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    summary = start(pause_s=0.3)
    killer.join()

    assert summary.exit_code == 0
    assert f"({victims[0]}) died: The actor is dead because its worker process has died" in caplog.text
    assert label_bytes(start.directory.root) == undisturbed


def test_workers_that_hang_or_are_stopped_are_ended_and_their_shards_done_elsewhere(start, undisturbed):
    summary = start(faults={2: HANG, 4: STOP}, faulty_attempts=1, timeout_s=8.0)

    assert (summary.exit_code, summary.retries) == (0, 2)
    assert label_bytes(start.directory.root) == undisturbed


def test_workers_that_cannot_warm_up_stop_the_run_with_their_own_words(tiny, tmp_path, connected):
    config = tiny_config(workers=2)
    (tmp_path / "body.npz").write_text("not a body")
    config = type(config)(run=config.run, body=type(config.body)(model_path=str(tmp_path / "body.npz")))

    with pytest.raises(RunAborted, match=r"BodyModelError: .*body\.npz is not a plain npz body model"):
        run_pipeline(tiny.manifest, tmp_path / "run", config, progress=False)


def test_a_driver_killed_in_the_middle_loses_nothing(tiny, tmp_path, undisturbed):
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "tests.run.chaos", tiny.manifest, directory.root, 2, 0.5]
    with subprocess.Popen([str(part) for part in command], cwd=REPOSITORY, stdout=subprocess.PIPE) as driver:
        worker = _first_receipt(directory).worker
        time.sleep(0.4)  # the next shard is under way
        driver.kill()
        done = len(list(directory.at("receipts").glob("shard-*")))
    _wait_for(lambda: not Path(f"/proc/{_pid(worker)}").exists())  # no worker outlives its driver for long
    assert 0 < done < SHARDS

    summary = run_pipeline(tiny.manifest, directory.root, tiny_config(), progress=False)

    assert summary.exit_code == 0
    assert summary.done_before + summary.done_now == SHARDS
    assert label_bytes(directory.root) == undisturbed


def test_an_image_that_kills_workers_costs_itself_only_and_heals_on_request(start, tiny, undisturbed):
    config = tiny_config(workers=2)
    runner = PoisonRunner(config, tiny.manifest, start.directory.root, [POISON])
    summary = run_pipeline(tiny.manifest, start.directory.root, config, progress=False, runner=runner)

    assert summary.exit_code == 0
    assert summary.image_status["worker_died"] == 1
    assert summary.failed_attempts == 4
    assert summary.workers_lost in (4, 5)  # one that dies before it said that it begun charges nothing, once
    check_poisoned(start.directory, undisturbed)
    retry: dict[str, Any] = {"retry_failed": True, "retry_statuses": ["worker_died"]}
    healed = run_pipeline(tiny.manifest, start.directory.root, tiny_config(), progress=False, **retry)
    assert (healed.repaired, healed.mended, healed.exit_code) == (1, 1, 0)
    assert label_bytes(start.directory.root) == undisturbed


def test_a_run_on_s3_by_ray_workers_has_the_bytes_of_a_local_one(connected, tiny, undisturbed, monkeypatch):
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    with serve_s3() as server:
        s3_client(server).create_bucket(Bucket="bucket")
        uri = s3_uri(server, "run")
        assert run_pipeline(tiny.manifest, uri, tiny_config(workers=2), progress=False).exit_code == 0
        assert remote_labels(uri) == undisturbed
