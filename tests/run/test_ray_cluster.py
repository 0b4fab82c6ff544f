"""A real cluster of several nodes and workers that do nothing: fractions of GPUs, idle deaths, drained nodes."""

import importlib
import os
import signal
import time
from contextlib import closing
from typing import Any

import pytest
import ray

from dto_pipeline.run.loop import ShardDone, WorkerDraining, WorkerLost, WorkerPlaced, WorkerReady
from dto_pipeline.run.ray_pool import RayPool
from tests.ray_cluster import NODE
from tests.run.chaos import tiny_config
from tests.run.fakes import QuickRunner, StuckRunner  # workers import what they are of: there, no PyTorch

pytestmark = pytest.mark.slow
PATIENCE_S = 600.0  # on a busy machine; nobody waits so long otherwise


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
