"""Real Ray actors and real SIGKILLs: whatever dies, the labels are those of an undisturbed run."""

import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dto_pipeline.data.labels import read_labels
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.loop import RunAborted
from dto_pipeline.run.report import RunSummary
from dto_pipeline.status import ImageStatus
from tests.ray_cluster import NODE, RayNodes
from tests.run.chaos import (
    DIE,
    HANG,
    RAISE,
    STOP,
    ChaosRunner,
    PoisonRunner,
    label_bytes,
    read_failure,
    read_receipt,
    remote_labels,
    tiny_config,
)
from tests.s3_server import ENVIRONMENT, s3_client, s3_uri, serve_s3

pytestmark = pytest.mark.slow
SHARDS = 6
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Disturbed:
    """A run with Ray workers on which much was let loose, and what it said."""

    directory: RunDirectory
    summary: RunSummary
    log: str
    killed: list[int]  # processes of the node's raylet


@pytest.fixture(scope="module")
def disturbed(tiny, tmp_path_factory, connected: RayNodes) -> Disturbed:
    """Three workers, each on a node of its own. Two shards never succeed, two are lost the first time, a node dies."""
    directory = RunDirectory(tmp_path_factory.mktemp("disturbed") / "run")
    config = tiny_config(workers=3, shard_timeout_s=8.0)
    faults = {0: HANG, 1: STOP, 4: DIE, 5: RAISE}
    runner = ChaosRunner(config, tiny.manifest, directory.root, pause_s=0.7, faults=faults)
    node, killed = connected.cluster.add_node(**NODE), list[int]()

    def kill_node():
        _first_receipt(directory)  # two workers hang at a shard now, and one works
        killed.extend(_children(node.all_processes["raylet"][0].process.pid))
        connected.cluster.remove_node(node, allow_graceful=False)
        for pid in killed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    log, said = logging.StreamHandler(io.StringIO()), logging.getLogger("dto_pipeline")
    said.addHandler(log)
    killer = threading.Thread(target=kill_node)
    killer.start()
    summary = run_pipeline(tiny.manifest, directory.root, config, progress=False, runner=runner)
    killer.join()
    said.removeHandler(log)
    return Disturbed(directory, summary, log.stream.getvalue(), killed)


def _children(parent: int) -> list[int]:
    """Processes whose parent is a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            pid, _, state = path.read_text().rpartition(")")
            if int(state.split()[1]) == parent:
                found.append(int(pid.split()[0]))
    return found


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


def _attempts(directory: RunDirectory) -> dict[int, int]:
    """Attempts of each finished shard."""
    receipts = [read_receipt(path) for path in directory.at("receipts").iterdir()]
    return {receipt.shard: receipt.attempt for receipt in receipts}


def _pid(worker: str) -> int:
    return int(worker.rpartition(":")[2])


def test_faults_cost_their_own_shard(disturbed):
    summary = disturbed.summary

    assert summary.failed_shards.keys() == {4, 5}
    assert "died: The actor is dead because its worker process has died" in summary.failed_shards[4]
    assert "shard 5 raised" in summary.failed_shards[5]
    assert read_failure(disturbed.directory.failure_file(4)).attempts == 3
    assert (summary.done_now, summary.exit_code) == (SHARDS - 2, 1)


def test_workers_that_hang_or_are_stopped_are_ended_and_their_shards_done_elsewhere(disturbed):
    attempts = _attempts(disturbed.directory)
    assert attempts[0] >= 2, disturbed.log  # a machine that is busy elsewhere may end one more at its deadline
    assert attempts[1] >= 2, disturbed.log
    assert "s at shard 1 and was ended" in disturbed.log or "s at shard 0 and was ended" in disturbed.log


def test_a_node_killed_with_all_its_processes_costs_the_run_its_worker_only(disturbed):
    assert disturbed.killed
    attempts = _attempts(disturbed.directory)
    failed = re.findall(r"shard (\d) failed \(attempt \d+, .*\): (.*)", disturbed.log)
    assert disturbed.summary.failed_attempts == len(failed), disturbed.log
    # Three attempts of shard 4 and of shard 5, and what the others needed besides their last: or one more, since a
    # worker may die between its receipt and its answer.
    assert len(failed) >= 6 + sum(attempts.values()) - len(attempts), disturbed.log
    assert [shard for shard, _ in failed].count("4") == [shard for shard, _ in failed].count("5") == 3, disturbed.log
    # The others: the node's shard, if it was at one, and those of workers that hung.
    assert sum(shard in "0123" and not why.startswith("hung") for shard, why in failed) <= 1, disturbed.log
    assert disturbed.summary.workers_lost >= 5


def test_a_second_run_in_one_process_does_what_workers_left_and_all_bytes_are_those_of_an_undisturbed_run(
    disturbed, tiny, undisturbed
):
    root = disturbed.directory.root
    assert run_pipeline(tiny.manifest, root, tiny_config(), retry_failed=True, progress=False).exit_code == 0
    assert label_bytes(root) == undisturbed


def test_workers_that_cannot_warm_up_stop_the_run_with_their_own_words(tiny, tmp_path, connected):
    config = tiny_config(workers=1)
    (tmp_path / "body.npz").write_text("not a body")
    config = type(config)(run=config.run, body=type(config.body)(model_path=str(tmp_path / "body.npz")))

    with pytest.raises(RunAborted, match=r"BodyModelError: .*body\.npz is not a plain npz body model"):
        run_pipeline(tiny.manifest, tmp_path / "run", config, progress=False)


def test_a_driver_killed_in_the_middle_loses_nothing(tiny, tmp_path, undisturbed):
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "tests.run.chaos", tiny.manifest, directory.root, 1, 0.5]
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


POISON = "tiny/000007.jpg"  # second image of shard 2 of the tiny set


def check_poisoned(directory: RunDirectory, undisturbed: dict[str, bytes]) -> None:
    """`POISON` has a row with its status; everything else is as if nothing had happened."""
    rows = read_labels(directory.label_file(2)).to_pylist()
    assert [row["status"] for row in rows].count(str(ImageStatus.WORKER_DIED)) == 1
    assert (rows[1]["image_id"], rows[1]["status"]) == (POISON, "worker_died")
    assert all(person["status"] == "not_run" for person in rows[1]["persons"])
    found = label_bytes(directory.root)
    assert {name for name in found if found[name] != undisturbed[name]} == {"shard-00002.parquet"}
    assert directory.store.entries("failures") == {}


def test_an_image_that_kills_workers_costs_itself_only_and_heals_on_request(connected, tiny, tmp_path, undisturbed):
    config, directory = tiny_config(workers=2, max_attempts=2), RunDirectory(tmp_path / "run")
    runner = PoisonRunner(config, tiny.manifest, directory.root, [POISON])
    summary = run_pipeline(tiny.manifest, directory.root, config, progress=False, runner=runner)

    assert summary.exit_code == 0
    assert summary.image_status["worker_died"] == 1
    assert summary.failed_attempts == 3
    assert summary.workers_lost in (3, 4)  # one that dies before it said that it begun charges nothing, once
    check_poisoned(directory, undisturbed)
    retry: dict[str, Any] = {"retry_failed": True, "retry_statuses": ["worker_died"]}
    healed = run_pipeline(tiny.manifest, directory.root, tiny_config(), progress=False, **retry)
    assert (healed.mended, healed.exit_code) == (1, 0)
    assert label_bytes(directory.root) == undisturbed


def test_a_run_on_s3_by_ray_workers_has_the_bytes_of_a_local_one(connected, tiny, undisturbed, monkeypatch):
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    with serve_s3() as server:
        s3_client(server).create_bucket(Bucket="bucket")
        uri = s3_uri(server, "run")
        assert run_pipeline(tiny.manifest, uri, tiny_config(workers=1), progress=False).exit_code == 0
        assert remote_labels(uri) == undisturbed
