"""Runs on a real S3-compatible server on loopback: interrupted uploads, lost answers, killed and paused drivers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from dto_pipeline.data import object_store
from dto_pipeline.data.manifest import Manifest, ManifestError
from dto_pipeline.data.object_store import RemoteStore
from dto_pipeline.data.storage import StoreError, open_store
from dto_pipeline.run import folder as files
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory, read_identity
from dto_pipeline.run.lease import RunLocked
from dto_pipeline.run.report import read_status
from dto_pipeline.run.worker import ShardRunner
from dto_pipeline.view.verify import verify_run
from tests.faulty_proxy import BUSY, CUT, SILENT, faulty_proxy
from tests.run.chaos import read_receipt, remote_labels, tiny_config
from tests.s3_server import ENVIRONMENT, s3_client, s3_uri, serve_s3

pytestmark = pytest.mark.slow
SHARDS = 6


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("moto.server", reason="pip install 'moto[server,s3]'")
    with serve_s3() as address:
        s3_client(address).create_bucket(Bucket="bucket")
        yield address


@pytest.fixture(autouse=True)
def _credentials(monkeypatch):
    for key, value in ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    object_store._open_client.cache_clear()  # another test's client may have found no credentials


@pytest.fixture
def uri(server, request):
    """Where this test keeps its run."""
    return s3_uri(server, f"{request.node.name}/run")


def start(tiny, uri: str, **options):
    return run_pipeline(tiny.manifest, uri, options.pop("config", tiny_config()), progress=False, **options)


def test_a_run_on_s3_has_the_bytes_of_a_local_one_and_passes_verification(tiny, uri, undisturbed):
    assert start(tiny, uri).exit_code == 0

    assert remote_labels(uri) == undisturbed
    assert verify_run(uri).passed
    assert start(tiny, uri).nothing_to_do
    assert read_status(uri).driver == "none"


@pytest.mark.parametrize("kind", [CUT, SILENT, BUSY])
def test_a_put_that_goes_wrong_once_is_sent_again(tiny, server, uri, undisturbed, kind):
    seen: Counter[str] = Counter()

    def fault(path: str) -> str:
        seen[path] += 1
        data = "labels/" in path or "receipts/" in path
        return kind if data and seen[path] == 1 else ""

    with faulty_proxy(server, fault) as proxy:
        assert start(tiny, uri.replace(server, proxy)).exit_code == 0

    assert remote_labels(uri) == undisturbed
    assert len(open_store(uri).entries("receipts")) == SHARDS


def test_an_upload_that_never_gets_through_leaves_nothing_and_costs_its_shard(tiny, server, uri, undisturbed):
    def fault(path: str) -> str:
        return CUT if "labels/shard-00002" in path else ""

    with faulty_proxy(server, fault) as proxy:
        summary = start(tiny, uri.replace(server, proxy), config=tiny_config(max_attempts=1))
    assert list(summary.failed_shards) == [2]
    assert "bucket bucket, key" in summary.failed_shards[2]
    assert "shard-00002.parquet" not in open_store(uri).entries("labels")
    uploads = s3_client(server).list_multipart_uploads(Bucket="bucket")
    assert uploads.get("Uploads", []) == []

    assert start(tiny, uri, retry_failed=True).exit_code == 0
    assert remote_labels(uri) == undisturbed


def test_of_two_writers_of_one_object_one_creates_it(uri):
    store = open_store(uri)
    with ThreadPoolExecutor(2) as threads:
        for number in range(5):
            answers = list(threads.map(lambda n, k=number: store.create(f"x{k}", bytes([n])), range(2)))
            assert sorted(answers) == [False, True]
            assert store.read(f"x{number}") == bytes([answers.index(True)])


def test_two_workers_at_one_shard_leave_one_receipt_that_both_return(tiny, uri, undisturbed):
    directory = RunDirectory(uri)
    config = tiny_config()
    start(tiny, uri, config=config)
    for name in (files.label_name(1), files.receipt_name(1)):
        directory.store.remove(name)
    writers = [ShardRunner(config, tiny.manifest, uri) for _ in range(2)]
    for writer in writers:
        writer.warm_up()

    with ThreadPoolExecutor(2) as threads:
        receipts = list(threads.map(lambda writer: writer.run(1), writers))

    assert receipts[0] == receipts[1] == read_receipt(directory.receipt_file(1))
    assert remote_labels(uri) == undisturbed


def spawn(tiny, uri: str, pause_s: float, lease_s: float = 60.0) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.run.chaos", str(tiny.manifest), uri, "0", str(pause_s), str(lease_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("nothing happened for a minute")


def test_a_killed_driver_on_s3_is_resumed_at_once_to_the_same_bytes(tiny, uri, undisturbed):
    store = open_store(uri)
    with spawn(tiny, uri, 1.5) as driver:
        wait_for(lambda: len(store.entries("labels")) >= 2, driver)
        with pytest.raises(RunLocked, match=f"process {driver.pid} on .* since"):
            RunDirectory(uri).lock(tiny_config(lease_s=60.0).run).__enter__()
        driver.kill()

    summary = start(tiny, uri)

    assert summary.exit_code == 0
    assert summary.done_before >= 1
    assert remote_labels(uri) == undisturbed


def test_of_two_drivers_started_together_one_works_and_one_is_refused(tiny, uri, undisturbed):
    with spawn(tiny, uri, 1.0) as first, spawn(tiny, uri, 1.0) as second:
        errors = [driver.communicate(timeout=300)[1] for driver in (first, second)]

    assert sorted((first.returncode, second.returncode)) == [0, 1], errors
    refused = errors[[first.returncode, second.returncode].index(1)]
    assert "RunLocked: " in refused, refused
    assert "is being worked on by process" in refused
    assert remote_labels(uri) == undisturbed


def test_a_run_taken_over_from_a_paused_driver_is_whole_and_the_driver_stops_when_it_wakes(tiny, uri, undisturbed):
    store = open_store(uri)
    with spawn(tiny, uri, 1.5, lease_s=5.0) as driver:
        wait_for(lambda: len(store.entries("labels")) >= 1, driver)
        driver.send_signal(signal.SIGSTOP)
        try:
            assert start(tiny, uri).exit_code == 0
        finally:
            driver.send_signal(signal.SIGCONT)
        assert "RunLockLost: " in driver.communicate(timeout=300)[1]

    assert driver.returncode == 1
    assert remote_labels(uri) == undisturbed
    assert start(tiny, uri).nothing_to_do


_DRIVER = """
import sys
from dto_pipeline.config import RunConfig
from dto_pipeline.data.storage import as_location
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.lease import RunLockLost

with RunDirectory(as_location(sys.argv[1])).lock(RunConfig(lease_s=3.0, heartbeat_s=0.3)) as lock:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lock.check(ask=True)
            print("mine", flush=True)
        except RunLockLost as error:
            print(error, flush=True)
"""


def test_a_paused_driver_that_wakes_after_a_take_over_is_told_so_and_leaves_the_lease_alone(uri):
    directory = RunDirectory(uri)
    directory.create_folders()
    command = [sys.executable, "-c", _DRIVER, uri]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdin is not None
        assert driver.stdout.readline() == "held\n"
        driver.send_signal(signal.SIGSTOP)
        try:
            with directory.lock() as lock:
                driver.send_signal(signal.SIGCONT)
                print("write", file=driver.stdin, flush=True)
                assert "was taken over by process" in driver.stdout.readline()
                driver.stdin.close()
                assert driver.wait(60) == 0
                lock.check(ask=True)
        finally:
            driver.send_signal(signal.SIGCONT)


def test_what_is_wrong_is_said_with_bucket_key_and_next_step(server, tiny, monkeypatch):
    with pytest.raises(StoreError, match=r"bucket nowhere, key run.*the bucket does not exist; make it"):
        start(tiny, s3_uri(server, "run", bucket="nowhere"))
    for key in ENVIRONMENT:
        monkeypatch.delenv(key)
    object_store._open_client.cache_clear()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StoreError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        RemoteStore(s3_uri(server, "run")).read("run.json")


def test_a_manifest_that_cannot_be_reached_is_not_called_damaged():
    with pytest.raises(ManifestError, match=r"cannot be read .*check bucket, credentials and endpoint"):
        Manifest.open(s3_uri("127.0.0.1:9", "m.parquet"))


def test_names_with_spaces_are_the_same_for_every_reader(server, tiny):
    uri = s3_uri(server, "a%20folder/run")
    assert start(tiny, uri).exit_code == 0
    assert verify_run(uri).passed
    assert read_identity(RunDirectory(uri)).shards == SHARDS
