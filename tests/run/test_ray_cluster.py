"""A real cluster of several nodes: addresses, fractions of GPUs, idle deaths, drained and killed nodes, metrics."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import ray

from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.lease import process_name
from dto_pipeline.run.pool import ShardDone, WorkerDraining, WorkerLost, WorkerPlaced, WorkerReady
from dto_pipeline.run.ray_pool import RayPool
from tests.ray_cluster import NODE
from tests.run.chaos import ChaosRunner, label_bytes, tiny_config
from tests.run.fakes import make_receipt

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 600.0  # on a busy machine; nobody waits so long otherwise


class QuickRunner:
    """Does nothing, and says where: its receipts name process and GPUs."""

    def warm_up(self):
        pass

    def run(self, shard, attempt=1):
        gpus = ",".join(str(number) for number in ray.get_gpu_ids())
        return make_receipt(shard, worker=f"{process_name()} {gpus}")


def _wait_for(pool, kind, count=1):
    """The first events of a kind."""
    found: list[Any] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < deadline, "waited in vain"
        found += [event for event in pool.wait(0.5) if isinstance(event, kind)]
    return found


def _work(pool, worker, shard=0):
    """What a worker says when it is given a shard."""
    pool.assign(worker, shard, 1)
    (done,) = _wait_for(pool, ShardDone)
    return done.receipt.worker


def test_a_worker_killed_while_idle_is_noticed_and_has_begun_nothing(connected):
    with closing(RayPool(QuickRunner(), tiny_config().run)) as pool:
        pool.start_worker()
        (ready,) = _wait_for(pool, WorkerReady)
        process = _work(pool, ready.worker).split()[0]
        os.kill(int(process.rpartition(":")[2]), signal.SIGKILL)
        (lost,) = _wait_for(pool, WorkerLost)

    assert not lost.begun
    assert lost.node == ready.node


def test_four_workers_share_two_gpus_in_halves_and_a_fifth_waits(connected):
    config = tiny_config(gpus_per_worker=0.5, cpus_per_worker=0.0).run
    with closing(RayPool(QuickRunner(), config)) as pool:
        for _ in range(5):
            pool.start_worker()
        ready = _wait_for(pool, WorkerReady, 4)
        gpus = [_work(pool, event.worker).split()[1] for event in ready]
        late = [event for event in pool.wait(2.0) if isinstance(event, WorkerReady | WorkerPlaced)]

    assert sorted(gpus) == ["0", "0", "1", "1"]
    assert late == []


class StuckRunner(QuickRunner):
    """Cannot even be unpacked, as where PyTorch lies on a file system that does not answer."""

    def __init__(self):
        self.weights = "far away"  # without a state there would be nothing to unpack

    def __setstate__(self, state):
        time.sleep(3600)


def test_a_worker_says_where_it_is_before_it_loads_anything(connected):
    with closing(RayPool(StuckRunner(), tiny_config().run)) as pool:
        worker = pool.start_worker()
        (placed,) = _wait_for(pool, WorkerPlaced)
        late = pool.wait(2.0)

    assert (placed.worker, late) == (worker, [])
    assert placed.node in {node["NodeID"] for node in ray.nodes()}


def test_no_worker_is_started_on_a_node_to_be_avoided(connected):
    head = connected.cluster.head_node.node_id
    with closing(RayPool(QuickRunner(), tiny_config(cpus_per_worker=0.1).run)) as pool:
        pool.avoid_node(head)
        for _ in range(3):
            pool.start_worker()
        ready = _wait_for(pool, WorkerReady, 3)

    assert len(ready) == 3
    assert all(event.node and event.node != head for event in ready)


def _drain(address, node):
    """What a cloud says before it takes a spot machine away."""
    generated: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    raylet: Any = importlib.import_module("ray._raylet")
    reason = generated.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 600) * 1000)
    accepted, why = raylet.GcsClient(address=address).drain_node(node.node_id, reason, "test", deadline_ms)
    assert accepted, why


def test_a_drained_node_is_noticed_its_workers_die_blameless_and_others_start_elsewhere(connected):
    spot = connected.cluster.add_node(**NODE, resources={"spot": 1})
    pool = RayPool(QuickRunner(), tiny_config().run)
    with closing(pool):
        pool._options["resources"] = {"spot": 0.5}
        pool.start_worker()
        (ready,) = _wait_for(pool, WorkerReady)
        _drain(connected.address, spot)
        (draining,) = _wait_for(pool, WorkerDraining)
        process = _work(pool, ready.worker).split()[0]  # it still finishes what it has
        os.kill(int(process.rpartition(":")[2]), signal.SIGKILL)
        (lost,) = _wait_for(pool, WorkerLost)
        del pool._options["resources"]
        pool.start_worker()
        (other,) = _wait_for(pool, WorkerReady)
    connected.cluster.remove_node(spot)

    assert draining.worker == ready.worker
    assert lost.blameless
    assert (ready.node, other.node == spot.node_id) == (spot.node_id, False)


def test_a_node_killed_with_all_its_processes_costs_the_run_its_worker_only(connected, tiny, tmp_path, undisturbed):
    node = connected.cluster.add_node(**NODE)
    receipts = tmp_path / "run" / "receipts"

    def kill():
        for _ in range(int(PATIENCE_S / 0.05)):
            if receipts.exists() and any(receipts.glob("shard-*.json")):
                break
            time.sleep(0.05)
        connected.cluster.remove_node(node, allow_graceful=False)

    config = tiny_config(workers=3)  # one on each node
    killer = threading.Thread(target=kill)
    killer.start()
    runner = ChaosRunner(config, tiny.manifest, tmp_path / "run", pause_s=1.0)
    summary = run_pipeline(tiny.manifest, tmp_path / "run", config, progress=False, runner=runner)
    killer.join()

    assert (summary.exit_code, summary.workers_lost) == (0, 1)
    assert label_bytes(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("how", ["auto", "client"])
def test_a_run_joins_a_cluster_by_auto_and_as_a_client(ray_nodes, tiny, tmp_path, undisturbed, how):
    address = "auto" if how == "auto" else ray_nodes.client
    options = ["--set=run.device=cpu", "--set=run.batch_images=2", "--workers=2", "--quiet"]
    options += ["--set=run.max_failed_images=1"]  # four of the eighteen images are spoilt
    command = [sys.executable, "-m", "dto_pipeline.cli", "run", tiny.manifest, "-o", tmp_path / "run", *options]
    environment = {**os.environ, "RAY_ADDRESS": ray_nodes.address if how == "auto" else ""}
    for _ in range(3):
        done = subprocess.run(
            [*map(str, command), "--address", address],
            cwd=REPOSITORY,
            env={name: value for name, value in environment.items() if value},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        if "Starting Ray client server failed" not in done.stderr:  # Ray gives it 30 s, a busy machine may need more
            break

    assert done.returncode == 0, done.stderr
    assert label_bytes(tmp_path / "run") == undisturbed
    assert ("nodes are drained" in done.stderr) == (how == "client")
    assert not list(RunDirectory(tmp_path / "run").at("failures").iterdir())
