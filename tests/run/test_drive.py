"""The driver's loop with workers in virtual time: deaths, hangs, poison, and the cost of a shard."""

import time
from itertools import chain, repeat

import pytest

from dto_pipeline.run.drive import RunAborted, drive
from dto_pipeline.run.schedule import Schedule
from tests.run.fakes import DIE, DONE, HANG, PREEMPTED, RAISE, START_S, FakeLedger, FakePool, make_policy


def _drive(pool: FakePool, shards: int = 12, **policy) -> FakeLedger:
    ledger = FakeLedger()
    drive(Schedule(range(shards), make_policy(**policy)), pool, ledger)
    return ledger


def _at(shard: int, fate: str, attempts: int = 99):
    return lambda number, attempt: fate if number == shard and attempt <= attempts else DONE


def test_every_shard_is_done_once():
    ledger = _drive(FakePool())

    assert sorted(ledger.done) == list(range(12))
    assert not ledger.charges
    assert not ledger.lost


def test_workers_share_the_work_evenly():
    pool = FakePool()
    _drive(pool, shards=12, workers=3)

    assert pool.now() == pytest.approx(START_S + 12 / 3 * 10.0)


def test_a_worker_that_dies_once_is_replaced_and_its_shard_done():
    pool = FakePool(_at(3, DIE, attempts=1))
    ledger = _drive(pool)

    assert sorted(ledger.done) == list(range(12))
    assert [(c.shard, c.attempts, c.given_up) for c in ledger.charges] == [(3, 1, False)]
    assert len(pool.started) == 3


@pytest.mark.parametrize("fate", [DIE, RAISE, HANG])
def test_a_poison_shard_is_given_up_and_all_others_are_done(fate):
    ledger = _drive(FakePool(_at(3, fate)))

    assert sorted(ledger.done) == [n for n in range(12) if n != 3]
    assert ledger.given_up == [3]
    assert {c.shard for c in ledger.charges} == {3}


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
    assert not ledger.charges


def test_workers_that_cannot_start_stop_the_run_with_their_message():
    with pytest.raises(RunAborted, match=r"could not start.*no start"):
        _drive(FakePool(starts=repeat("fail")))


def test_one_failed_start_is_tried_again():
    ledger = _drive(FakePool(starts=chain(["fail", "fail"], repeat("ready"))))

    assert sorted(ledger.done) == list(range(12))


def test_too_many_given_up_shards_stop_the_run():
    with pytest.raises(RunAborted, match=r"given up, more than 2.*--retry-failed"):
        _drive(FakePool(lambda shard, attempt: RAISE), max_failed_shards=2)


def test_waiting_for_workers_is_said_once_a_minute():
    ledger = FakeLedger()
    with pytest.raises(KeyboardInterrupt):
        drive(Schedule(range(2), make_policy()), FakePool(starts=repeat("never"), interrupt_at=200.0), ledger)

    assert ledger.waited == [60.0, 120.0, 180.0]


def test_the_loop_costs_less_than_a_millisecond_a_shard():
    pool = FakePool()
    start = time.process_time()
    _drive(pool, shards=2000, workers=16)

    assert (time.process_time() - start) / 2000 < 1e-3


def test_a_few_of_many_workers_may_die_at_the_start_by_chance():
    starts = chain(["fail"] * 4, repeat("ready"))
    ledger = _drive(FakePool(starts=starts), shards=100, workers=50)

    assert sorted(ledger.done) == list(range(100))


def test_many_workers_that_all_cannot_start_stop_the_run_too():
    with pytest.raises(RunAborted, match=r"5 workers in a row could not start"):
        _drive(FakePool(starts=repeat("fail")), shards=100, workers=50)
