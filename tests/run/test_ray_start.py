"""Ray that cannot start, addresses without a cluster, workers ended for lack of memory: each said as what it is."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import ray

from dto_pipeline.cli import interrupt_on_sigterm
from dto_pipeline.config import RunConfig
from dto_pipeline.run import ray_pool
from dto_pipeline.run import ray_start as cluster
from dto_pipeline.run.ray_pool import RayPool
from dto_pipeline.run.ray_start import ClusterUnreachable, dead_parts, start_ray
from tests.run.chaos import tiny_config

LONG = "x" * 60


@pytest.fixture
def pool(monkeypatch):
    """A pool of one actor, as if it had answered; Ray is not started."""
    made = RayPool.__new__(RayPool)
    made._actors = {"worker-1": ray_pool._Actor(None, "host:1", "here", begun=1, oom_kills=4)}
    made._tasks = {}
    monkeypatch.setattr(made, "kill", lambda worker: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: type("Context", (), {"get_node_id": lambda self: "here"})())
    monkeypatch.setattr(ray_pool, "oom_kills", lambda: 4)
    return made


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.OutOfMemoryError("1 worker(s) were killed due to the node running low on memory."),
        ray.exceptions.RaySystemError("The actor is dead. Worker exit type: NODE_OUT_OF_MEMORY"),
        ray.exceptions.WorkerCrashedError(),
    ],
    ids=["monitor", "actor", "kernel"],
)
def test_a_worker_that_was_ended_for_want_of_memory_is_told_from_one_that_crashed(pool, monkeypatch, error):
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        assert not pool._lost("worker-1", error).out_of_memory
        monkeypatch.setattr(ray_pool, "oom_kills", lambda: 5)
    lost = pool._lost("worker-1", error)

    assert lost.out_of_memory
    assert not lost.blameless  # of its machine, which others may have to leave
    assert "memory ran out on its machine" in lost.error


@pytest.mark.parametrize(
    "error", [Exception("timed out during startup"), RuntimeError("Version mismatch"), OSError("x")]
)
def test_whatever_ray_raises_when_it_does_not_start_is_one_sentence(monkeypatch, error):
    def refuse(**_):
        raise error

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ClusterUnreachable, match=rf"Ray cannot start on this machine: .*{error}.*--workers 0"):
        start_ray(tiny_config(workers=2).run, "local")


def test_what_sigterm_does_stays_as_the_command_line_set_it(monkeypatch):
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)))
    with interrupt_on_sigterm():
        own = signal.getsignal(signal.SIGTERM)
        start_ray(RunConfig(workers=1), "local")
        assert signal.getsignal(signal.SIGTERM) is own


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_refused_by_name(monkeypatch, tmp_path, name):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)  # Python asks TMPDIR once
    monkeypatch.setenv(name, str(tmp_path / LONG))
    (tmp_path / LONG).mkdir()
    with pytest.raises(ClusterUnreachable, match=rf"^{name} is .*107 are possible; set RAY_TMPDIR to a short folder"):
        start_ray(tiny_config(workers=2).run, "local")


def fake_part(folder, name="raylet"):
    """A process that is called like a part of Ray."""
    program = shutil.copy("/bin/sleep", folder / name)
    return subprocess.Popen([program, "60"])


def test_a_part_of_ray_that_died_is_seen(tmp_path):
    part = fake_part(tmp_path)
    assert part.pid not in dead_parts()
    part.kill()
    deadline = time.monotonic() + 10
    while part.pid not in dead_parts():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert dead_parts()[part.pid] == "raylet"
    part.wait()
    assert part.pid not in dead_parts()


_STUCK = """
import sys, time
from pathlib import Path
from dto_pipeline.run import ray_start as cluster
from tests.run.test_ray_start import fake_part
cluster._OWN_WORDS_S = 0.2
earlier = fake_part(Path(sys.argv[1]))
earlier.kill()
while earlier.pid not in cluster.dead_parts():
    time.sleep(0.01)
with cluster.watched_start("local"):
    time.sleep(1)  # what died before Ray started is nobody's business
    part = fake_part(Path(sys.argv[1]), "gcs_server")
    part.kill()
    time.sleep(60)
"""


def test_where_a_part_of_ray_dies_while_the_driver_registers_the_process_ends_with_a_sentence(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", _STUCK, str(tmp_path)], capture_output=True, text=True, timeout=50, check=False
    )

    assert found.returncode == 2
    assert found.stderr.startswith("dto: Ray cannot start on this machine: gcs_server died while it did; ")
    assert found.stderr.count("\n") == 1


@pytest.fixture
def closed_port():
    """A port nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_stale_address_is_refused_at_once(closed_port, scheme):
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=r"nothing listens there.*10001 for ray://"):
        start_ray(tiny_config(workers=2).run, f"{scheme}127.0.0.1:{closed_port}")

    assert time.monotonic() - began < 30


def test_a_stale_address_in_the_environment_is_refused_too(closed_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterUnreachable, match="nothing listens there"):
        start_ray(tiny_config(workers=2).run, "auto")


def test_a_port_that_only_accepts_is_no_cluster(monkeypatch):
    monkeypatch.setattr(cluster, "REACH_S", 1.0)
    refusal = pytest.raises(ClusterUnreachable, match="no Ray that answers")
    with socket.create_server(("127.0.0.1", 0)) as mute, refusal:
        start_ray(tiny_config(workers=2).run, f"127.0.0.1:{mute.getsockname()[1]}")


@pytest.mark.parametrize("address", ["somewhere", "host:port", "ray://", ":6379"])
def test_what_is_no_address_is_refused_with_what_one_looks_like(address):
    with pytest.raises(ClusterUnreachable, match="HOST:PORT"):
        start_ray(tiny_config(workers=2).run, address)
