"""What a failure costs a shard, which one comes next, how long it may take; and the same as workers come and go."""

from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.run.loop import (
    DEADLINE_FLOOR_S,
    MEMORY_ATTEMPTS,
    FailedAttempt,
    Schedule,
    ShardProgress,
    WorkerDraining,
    WorkerLost,
    drive,
)
from tests.run.fakes import DIE, DONE, PREEMPTED, RAISE, FakeLedger, FakePool, make_config


def _schedule(shards=range(8), **options) -> Schedule:
    policy = {name: options.pop(name) for name in ("attempts", "allows_another", "partial") if name in options}
    return Schedule(shards, make_config(**options), **policy)


def test_a_shard_whose_worker_died_is_charged_and_comes_last():
    schedule = _schedule()
    assert schedule.take() == 0

    assert schedule.died(0) == FailedAttempt(shard=0, attempts=1, given_up=False)
    assert list(schedule.pending) == [1, 2, 3, 4, 5, 6, 7, 0]


def test_a_preempted_shard_comes_first_and_costs_nothing():
    schedule = _schedule()
    schedule.take()

    assert schedule.died(0, blameless=True) is None
    assert (schedule.attempts, schedule.pending[0]) == ({}, 0)


def test_a_shard_that_a_dead_worker_had_not_begun_is_spared_once_only():
    schedule = _schedule()
    schedule.take()
    assert schedule.died(0, begun=False) is None
    schedule.take()
    assert schedule.died(0, begun=False) == FailedAttempt(0, 1, False)


def test_deaths_that_lead_somewhere_do_not_give_a_shard_up_but_exceptions_do():
    ask = Mock(return_value=True)
    schedule = _schedule([7], max_attempts=2, allows_another=ask)
    for _ in range(4):
        failed = schedule.died(schedule.take())
        assert failed is not None
        assert not failed.given_up

    assert [call.args for call in ask.mock_calls] == [(7, attempt, False) for attempt in (1, 2, 3, 4)]
    assert schedule.failed(schedule.take()).given_up


def test_a_shard_that_takes_the_memory_away_every_time_is_given_up_in_the_end():
    ask = Mock(return_value=False)
    schedule = _schedule([7], max_attempts=2, allows_another=ask)
    failed = [schedule.died(schedule.take(), out_of_memory=True) for _ in range(MEMORY_ATTEMPTS + 2)]

    assert failed == [None] * MEMORY_ATTEMPTS + [FailedAttempt(7, 1, False), FailedAttempt(7, 2, True)]
    assert (schedule.unfinished, schedule.given_up) == (0, {7})
    assert [call.args for call in ask.mock_calls] == [(7, 1, True), (7, 2, True)]


def test_attempts_of_earlier_launches_count():
    schedule = _schedule([7], attempts={7: 2}, max_attempts=3)

    assert schedule.failed(schedule.take()) == FailedAttempt(7, 3, True)


def test_a_hung_shard_is_noticed_early_once_the_usual_duration_is_known_unless_it_failed_before():
    schedule = _schedule(attempts={7: 1}, shard_timeout_s=3600.0)
    for shard in range(6):
        assert schedule.deadline(shard) == 3600.0 or shard == 5
        schedule.done(shard, seconds=1.0)

    assert schedule.deadline(6) == DEADLINE_FLOOR_S
    assert schedule.deadline(7) == 3600.0


def test_shards_found_on_disk_and_repairs_of_a_few_images_say_nothing_about_the_usual_duration():
    schedule = _schedule(range(80), partial=range(40), shard_timeout_s=3600.0)
    for shard in range(40):
        schedule.done(shard, seconds=2.0)
        schedule.done(40 + shard, seconds=0.01, computed=False)

    assert schedule.deadline(79) == 3600.0


def test_every_worker_is_given_the_shard_it_reads_ahead_of_as_long_as_it_is_pending():
    schedule, expected = _schedule(range(9)), []
    for shard in range(3):
        assert schedule.take() == shard
        expected.append(schedule.expect(3))

    assert expected == [3, 4, 5]
    assert [schedule.take(shard) for shard in (4, 5, 3)] == [4, 5, 3]
    assert schedule.take(3) == 6  # 3 is gone: the first that is left


@given(st.lists(st.integers(0, 3), max_size=40))
def test_no_two_workers_read_ahead_of_one_shard_whoever_is_quick(turns):
    schedule, expected = _schedule(range(60), partial={2, 5}), dict[int, int | None]()
    for worker in [0, 1, 2, 3, *turns]:
        schedule.take(expected.get(worker))
        expected[worker] = schedule.expect(4)
        known = [shard for shard in expected.values() if shard is not None]
        assert len(set(known)) == len(known)
        assert not {2, 5}.intersection(known)


def test_every_worker_has_one_shard_at_a_time_and_no_more_come_than_there_are_shards():
    pool, ledger = FakePool(), FakeLedger()
    drive(_schedule(range(3), workers=8), pool, ledger)

    assert len(pool.started) == 3
    assert max(workers.working for workers in ledger.ticks) == 3
    assert ledger.ticks[-1][:5] == (3, 0, 0, 0, 0)


def test_progress_inside_a_shard_counts_for_the_worker_that_has_it_only():
    class Speaks(FakePool):
        def wait(self, timeout_s):
            events = super().wait(timeout_s)
            said = [ShardProgress(worker, shard, 5) for worker, shard in self.busy.items()]
            return [*events, *said, *(ShardProgress(worker, shard + 1, 70) for worker, shard in self.busy.items())]

    ledger = FakeLedger()
    drive(_schedule(range(2), workers=2), Speaks(), ledger)

    assert {workers.images for workers in ledger.ticks} == {0, 5, 10}


@given(st.data())
def test_whatever_happens_no_shard_is_lost_or_done_twice(data):
    """Shards raise, kill, are pre-empted and leave in any order; workers come and go."""

    class Chance(FakePool):
        def wait(self, timeout_s):
            events = super().wait(timeout_s)
            if data.draw(st.booleans()):
                worker = data.draw(st.sampled_from(self.started))
                if worker not in self.killed and not any(isinstance(event, WorkerLost) for event in events):
                    events.append(WorkerDraining(worker))
            return events

    pool = Chance(lambda shard, attempt: data.draw(st.sampled_from([DONE, DONE, RAISE, DIE, PREEMPTED])))
    ledger, schedule = FakeLedger(), _schedule(range(6), max_attempts=2, max_failed_shards=6)
    drive(schedule, pool, ledger)

    assert sorted([*ledger.done, *schedule.given_up]) == list(range(6))
    assert (schedule.unfinished, ledger.given_up) == (0, [*dict.fromkeys(ledger.given_up)])
