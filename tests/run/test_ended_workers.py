"""Ending a worker that is lost already: its last words and its death may reach the driver in the same moment."""

import pytest

from dto_pipeline.run.loop import Schedule, ShardRaised, WorkerLost, drive
from tests.run.fakes import DIE, DONE, FakeLedger, FakePool, make_config


class LosesItsDevice(FakePool):
    """A worker that dies says first that its device failed; both are heard at once. It is forgotten by then."""

    def __init__(self, forget) -> None:
        super().__init__(lambda shard, attempt: DIE if (shard, attempt) == (3, 1) else DONE)
        self._forget = forget

    def wait(self, timeout_s):
        events = super().wait(timeout_s)
        lost = [event for event in events if isinstance(event, WorkerLost)]
        return [ShardRaised(event.worker, 3, "DeviceLost", "trace", fatal=True) for event in lost] + events

    def kill(self, worker):
        self._forget(worker)
        super().kill(worker)


@pytest.fixture
def ray_pool():
    """A pool of actors that has none; Ray is not started."""
    pytest.importorskip("ray")
    from dto_pipeline.run.ray_pool import RayPool

    pool = RayPool.__new__(RayPool)
    pool._actors, pool._tasks = {}, {}
    return pool


def test_a_device_that_takes_its_process_along_costs_one_try_and_not_the_run(ray_pool):
    ledger = FakeLedger()
    drive(Schedule(range(6), make_config()), LosesItsDevice(ray_pool.kill), ledger)

    assert sorted(ledger.done) == list(range(6))
    assert [(failed.shard, failed.attempts) for failed in ledger.failed] == [(3, 1)]
