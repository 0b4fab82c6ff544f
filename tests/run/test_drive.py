"""The driver's loop with workers in virtual time: deaths, hangs, poison, and the cost of a shard."""

import time
from itertools import chain, repeat

import pytest

from dto_pipeline.run.loop import (
    MAX_NODE_FAILURES,
    Event,
    RunAborted,
    Schedule,
    ShardDone,
    ShardProgress,
    ShardRaised,
    TooManyFailed,
    WorkerDraining,
    WorkerLost,
    WorkerReady,
    drive,
)
from tests.run.fakes import DIE, DONE, HANG, PREEMPTED, RAISE, START_S, FakeLedger, FakePool, make_config, make_receipt


def _drive(pool: FakePool, shards: int = 12, **policy) -> FakeLedger:
    ledger = FakeLedger()
    drive(Schedule(range(shards), make_config(**policy)), pool, ledger)
    return ledger


def _at(shard: int, fate: str, attempts: int = 99):
    return lambda number, attempt: fate if number == shard and attempt <= attempts else DONE


def test_every_shard_is_done_once():
    ledger = _drive(FakePool())

    assert sorted(ledger.done) == list(range(12))
    assert not ledger.failed
    assert not ledger.lost


def test_workers_share_the_work_evenly():
    pool = FakePool()
    _drive(pool, shards=12, workers=3)

    assert pool.now() == pytest.approx(START_S + 12 / 3 * 10.0)


def test_a_worker_that_dies_once_is_replaced_and_its_shard_done():
    pool = FakePool(_at(3, DIE, attempts=1))
    ledger = _drive(pool)

    assert sorted(ledger.done) == list(range(12))
    assert [(c.shard, c.attempts, c.given_up) for c in ledger.failed] == [(3, 1, False)]
    assert len(pool.started) == 3


@pytest.mark.parametrize("fate", [DIE, RAISE, HANG])
def test_a_poison_shard_is_given_up_and_all_others_are_done(fate):
    ledger = _drive(FakePool(_at(3, fate)))

    assert sorted(ledger.done) == [n for n in range(12) if n != 3]
    assert ledger.given_up == [3]
    assert {c.shard for c in ledger.failed} == {3}


def test_a_worker_that_hangs_is_ended_and_its_shard_done_elsewhere():
    pool = FakePool(_at(3, HANG, attempts=1))
    ledger = _drive(pool, shard_timeout_s=50.0)

    assert sorted(ledger.done) == list(range(12))
    assert "hung" in ledger.lost[0]
    assert "shard 3" in ledger.lost[0]


def test_preemption_never_gives_a_shard_up():
    fates = chain([PREEMPTED, DONE, PREEMPTED, PREEMPTED, DONE, PREEMPTED], repeat(DONE))
    ledger = _drive(FakePool(lambda shard, attempt: next(fates)), max_attempts=1)

    assert sorted(ledger.done) == list(range(12))
    assert not ledger.failed


def test_workers_that_cannot_start_stop_the_run_with_their_message():
    with pytest.raises(RunAborted, match=r"could not start.*no start"):
        _drive(FakePool(starts=repeat("fail")))


def test_one_failed_start_is_tried_again():
    ledger = _drive(FakePool(starts=chain(["fail", "fail"], repeat("ready"))))

    assert sorted(ledger.done) == list(range(12))


def test_too_many_given_up_shards_stop_the_run():
    with pytest.raises(TooManyFailed, match=r"given up, more than 2.*--retry-failed") as caught:
        _drive(FakePool(lambda shard, attempt: RAISE), max_failed_shards=2)
    assert caught.value.exit_code == 1


def test_the_time_without_a_ready_worker_is_reported():
    ledger = FakeLedger()
    with pytest.raises(KeyboardInterrupt):
        drive(Schedule(range(2), make_config()), FakePool(starts=repeat("never"), interrupt_at=200.0), ledger)

    assert ledger.ticks[-1].idle_s == pytest.approx(200.0, abs=5.0)
    assert ledger.ticks[-1].loading == 0


def test_workers_that_wait_for_their_place_are_never_taken_for_hanging():
    ledger, pool = FakeLedger(), FakePool(starts=repeat("never"), interrupt_at=5000.0)
    with pytest.raises(KeyboardInterrupt):
        drive(Schedule(range(2), make_config(warm_up_timeout_s=50.0)), pool, ledger)

    assert (ledger.lost, pool.killed) == ([], [])


def test_a_worker_that_hangs_while_it_loads_is_ended_and_replaced():
    pool = FakePool(starts=chain(["hang", "ready"], repeat("ready")), seconds=lambda shard: 20.0)
    ledger = _drive(pool, warm_up_timeout_s=50.0)

    assert sorted(ledger.done) == list(range(12))
    assert not ledger.failed
    assert pool.killed == ["fake-1"]
    assert "was still loading (run.warm_up_timeout_s)" in ledger.lost[0]
    assert pool.now() < 12 * 20.0  # two worked in the end


def test_workers_that_all_hang_while_they_load_stop_the_run_and_are_reported_before():
    ledger = FakeLedger()
    with pytest.raises(RunAborted, match=r"could not start; .*still loading"):
        drive(Schedule(range(12), make_config()), FakePool(starts=repeat("hang")), ledger)

    assert max(workers.idle_s for workers in ledger.ticks) > 60.0
    assert max(workers.loading for workers in ledger.ticks) == 2


def test_a_few_of_many_workers_may_die_at_the_start_by_chance():
    starts = chain(["fail"] * 4, repeat("ready"))
    ledger = _drive(FakePool(starts=starts), shards=100, workers=50)

    assert sorted(ledger.done) == list(range(100))


def test_many_workers_that_all_cannot_start_stop_the_run_too():
    with pytest.raises(RunAborted, match=r"5 workers in a row could not start"):
        _drive(FakePool(starts=repeat("fail")), shards=100, workers=50)


class NodePool(FakePool):
    """Workers on nodes; `bad` nodes kill whoever begins a shard there (or comes up, with `at_start`)."""

    def __init__(self, nodes, bad=(), at_start=False, drain_at=None):
        self._at_start, self._bad, self._nodes = at_start, set(bad), list(nodes)
        self.node_of: dict[str, str] = {}
        self._drain_at = drain_at  # (when, node)
        super().__init__(behaviour=self._fate)

    def _fate(self, shard, attempt):
        return DIE if self.node_of[self.executions[-1][0]] in self._bad else DONE

    def start_worker(self):
        alive = [self.node_of[worker] for worker in self.started if worker not in self.killed]
        usable = [node for node in self._nodes if node not in self.avoided]
        node = min(usable, key=alive.count)  # where most room is
        worker = f"fake-{len(self.started) + 1}"
        self.node_of[worker] = node
        self.started.append(worker)
        dies = self._at_start and node in self._bad
        event = WorkerLost(worker, "no GPU here", node=node) if dies else WorkerReady(worker, node=node)
        self._later(START_S, worker, event)
        return worker

    def wait(self, timeout_s):
        events: list[Event] = super().wait(timeout_s)
        if self._drain_at is not None and self.now() >= self._drain_at[0]:
            node, self._drain_at = self._drain_at[1], None
            events += [WorkerDraining(worker) for worker in self.started if self.node_of[worker] == node]
        return events


def test_a_node_that_kills_every_worker_gets_no_more_of_them():
    pool = NodePool(["good", "bad"], bad=["bad"])
    ledger = _drive(pool, shards=40, workers=4, max_attempts=9)

    assert sorted(ledger.done) == list(range(40))
    assert pool.avoided == ["bad"]
    assert any("node bad" in lost or "in a row died there" in lost for lost in ledger.lost)
    assert sum(pool.node_of[worker] == "bad" for worker in pool.started) <= MAX_NODE_FAILURES + 4


def test_a_node_where_no_worker_starts_does_not_stop_the_run_on_others():
    pool = NodePool(["good", "bad"], bad=["bad"], at_start=True)
    ledger = _drive(pool, shards=40, workers=4)

    assert sorted(ledger.done) == list(range(40))
    assert pool.avoided == ["bad"]


def test_the_only_node_is_never_left_out():
    pool = NodePool(["only"], bad=["only"])
    with pytest.raises(RunAborted, match="given up"):
        _drive(pool, shards=40, workers=2, max_attempts=3, max_failed_shards=3)

    assert pool.avoided == []


def test_one_poison_shard_does_not_make_nodes_suspicious():
    pool = NodePool(["one", "two"])
    pool._behaviour = _at(3, DIE)
    ledger = _drive(pool, shards=4, workers=2, max_attempts=12)

    assert ledger.given_up == [3]
    assert pool.avoided == []


def test_workers_of_a_draining_node_finish_what_they_hold_and_are_replaced_at_once():
    pool = NodePool(["stays", "goes"], drain_at=(14.0, "goes"))
    ledger = _drive(pool, shards=20, workers=2)

    assert sorted(ledger.done) == list(range(20))
    assert not ledger.failed
    drained = [worker for worker in pool.started if pool.node_of[worker] == "goes"]
    assert drained[0] in pool.killed  # ended once it had nothing left
    assert sum(worker == drained[0] for worker, _, _ in pool.executions) <= 3


def test_a_worker_that_gets_ready_on_a_draining_node_is_given_nothing():
    pool = NodePool(["stays", "goes"], drain_at=(0.0, "goes"))  # told while the workers start, and never again
    ledger = _drive(pool, shards=6, workers=2)

    assert sorted(ledger.done) == list(range(6))
    assert pool.node_of[pool.started[1]] == "goes"
    assert all(worker != pool.started[1] for worker, _, _ in pool.executions)


def test_what_an_ended_worker_still_says_is_not_heard():
    class Echo(FakePool):
        """Says everything twice, the second time when the worker is long gone."""

        def wait(self, timeout_s):
            events = super().wait(timeout_s)
            if any(isinstance(event, WorkerLost) for event in events):
                worker = events[0].worker
                events += [ShardDone(worker, 3, make_receipt(3)), ShardProgress(worker, 3, 1), WorkerDraining(worker)]
            return events

    ledger = _drive(Echo(_at(3, DIE, attempts=1)))
    assert sorted(ledger.done) == list(range(12))


def test_five_thousand_shards_on_many_workers_cost_less_than_a_millisecond_each():
    pool = FakePool()
    start = time.process_time()
    _drive(pool, shards=5000, workers=256)

    assert (time.process_time() - start) / 5000 < 1e-3


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
