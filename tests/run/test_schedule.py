"""The driver's decisions, without workers: who is fed, who is charged, who is overdue."""

from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.run.loop import DEADLINE_FLOOR_S, MEMORY_ATTEMPTS, Charge, Schedule, likely_next
from tests.run.fakes import make_config


def _schedule(shards=range(8), workers=("a", "b"), attempts=None, **policy) -> Schedule:
    schedule = Schedule(shards, make_config(**policy), attempts)
    for worker in workers:
        schedule.add_worker(worker)
    return schedule


def _assigned(schedule: Schedule, now: float = 0.0) -> list[tuple[str, int, int]]:
    return [(a.worker, a.shard, a.attempt) for a in schedule.take_assignments(now)]


def test_every_worker_has_one_shard_at_a_time():
    schedule = _schedule()
    assert _assigned(schedule) == [("a", 0, 1), ("b", 1, 1)]
    assert _assigned(schedule) == []
    schedule.shard_done("b", 1, now=1.0)
    assert _assigned(schedule) == [("b", 3, 1)]


def test_a_dead_worker_is_charged_for_its_shard_which_comes_last():
    schedule = _schedule()
    _assigned(schedule)

    charge = schedule.worker_lost("a")

    assert charge == Charge(shard=0, attempts=1, given_up=False)
    assert schedule.attempts == {0: 1}
    assert list(schedule.pending) == [2, 3, 4, 5, 6, 7, 0]


def test_a_preempted_worker_costs_no_shard_a_try():
    schedule = _schedule()
    _assigned(schedule)

    assert schedule.worker_lost("a", blameless=True) is None
    assert schedule.attempts == {}
    assert schedule.pending[0] == 0


def test_a_worker_that_died_idle_charges_nobody():
    assert _schedule().worker_lost("a") is None


def test_a_shard_that_a_dead_worker_had_not_begun_is_spared_once_only():
    schedule = _schedule(workers=("a",))
    _assigned(schedule)
    assert schedule.worker_lost("a", begun=False) is None
    assert schedule.pending[0] == 0

    schedule.add_worker("b")
    _assigned(schedule)
    charge = schedule.worker_lost("b", begun=False)
    assert charge is not None
    assert (charge.shard, charge.attempts) == (0, 1)


def test_a_worker_that_leaves_finishes_its_shard_and_another_is_asked_for():
    schedule = _schedule()
    _assigned(schedule)
    schedule.stop_feeding("a")

    assert schedule.workers == ("b",)
    assert schedule.workers_missing(starting=0) == 1
    assert schedule.workers_released() == []
    schedule.shard_done("a", 0, now=1.0)
    assert schedule.workers_released() == ["a"]
    assert _assigned(schedule) == []  # b is busy
    schedule.shard_done("b", 1, now=3.0)
    assert {worker for worker, _, _ in _assigned(schedule)} == {"b"}


def test_deaths_that_are_excused_do_not_give_a_shard_up_but_exceptions_do():
    asked: list[tuple[int, int]] = []

    def allows_another(shard, attempt, out_of_memory):
        asked.append((shard, attempt))
        return True

    schedule = Schedule([7], make_config(max_attempts=2), allows_another=allows_another)
    for number in range(4):
        schedule.add_worker(f"w{number}")
        _assigned(schedule)
        charge = schedule.worker_lost(f"w{number}")
        assert charge is not None
        assert not charge.given_up

    assert asked == [(7, 1), (7, 2), (7, 3), (7, 4)]
    schedule.add_worker("last")
    _assigned(schedule)
    assert schedule.shard_failed("last", 7).given_up


def test_a_death_for_want_of_memory_charges_nobody_and_puts_the_shard_last():
    schedule = _schedule()
    _assigned(schedule)

    assert schedule.worker_lost("a", out_of_memory=True) is None
    assert schedule.attempts == {}
    assert schedule.pending[-1] == 0


def test_a_shard_that_takes_the_memory_away_every_time_is_given_up_in_the_end():
    asked = []

    def allows_another(*facts):
        asked.append(facts)
        return False

    schedule = Schedule([7], make_config(max_attempts=2), allows_another=allows_another)
    charges = []
    for number in range(MEMORY_ATTEMPTS + 2):
        schedule.add_worker(f"w{number}")
        _assigned(schedule)
        charges.append(schedule.worker_lost(f"w{number}", out_of_memory=True))

    tries = [Charge(7, 1, False), Charge(7, 2, True)]
    assert charges == [None] * MEMORY_ATTEMPTS + tries
    assert schedule.finished
    assert asked == [(7, 1, True), (7, 2, True)]


def test_progress_inside_a_shard_counts_for_the_worker_that_has_it_only():
    schedule = _schedule()
    _assigned(schedule)
    schedule.note_progress("a", 0, 5)
    schedule.note_progress("b", 3, 7)  # not its shard: an old or mistaken word
    assert schedule.images_under_way == 5

    schedule.shard_done("a", 0, now=1.0)
    assert schedule.images_under_way == 0


def test_a_shard_is_given_up_after_its_last_try():
    schedule = _schedule(shards=[7], workers=("a",), max_attempts=2)
    verdicts = []
    for _ in range(2):
        _assigned(schedule)
        verdicts.append(schedule.shard_failed("a", 7).given_up)

    assert verdicts == [False, True]
    assert schedule.finished
    assert schedule.given_up == {7}


def test_tries_of_earlier_starts_count():
    schedule = _schedule(shards=[7], workers=("a",), attempts={7: 2}, max_attempts=3)

    assert _assigned(schedule) == [("a", 7, 3)]
    assert schedule.shard_failed("a", 7).given_up


def test_only_as_many_workers_are_asked_for_as_there_are_shards():
    assert Schedule(range(3), make_config(workers=8)).workers_missing(starting=1) == 2


def test_the_watchdog_counts_from_when_a_worker_is_given_its_shard():
    schedule = _schedule(workers=("a",), shard_timeout_s=100.0)
    _assigned(schedule, now=0.0)
    schedule.shard_done("a", 0, now=90.0)
    _assigned(schedule, now=90.0)

    assert schedule.overdue(now=150.0) == []
    assert schedule.overdue(now=200.0) == [("a", 2, 110.0)]


def test_once_the_usual_duration_is_known_a_hung_shard_is_noticed_early():
    schedule = _schedule(shards=range(9), workers=("a",), shard_timeout_s=3600.0)
    for now in range(1, 7):
        _assigned(schedule, now - 1.0)
        schedule.shard_done("a", now - 1, float(now))

    assert schedule.deadline(8) == DEADLINE_FLOOR_S


def test_shards_found_on_disk_say_nothing_about_the_usual_duration():
    schedule = _schedule(shards=range(9), workers=("a",), shard_timeout_s=3600.0)
    for now in range(1, 7):
        _assigned(schedule, now - 1.0)
        schedule.shard_done("a", now - 1, float(now), computed=False)

    assert schedule.deadline(8) == 3600.0


def test_a_shard_tried_again_gets_the_whole_time():
    schedule = _schedule(shards=range(9), workers=("a",), attempts={8: 1}, shard_timeout_s=3600.0)
    for now in range(1, 7):
        _assigned(schedule, now - 1.0)
        schedule.shard_done("a", now - 1, float(now))

    assert schedule.deadline(8) == 3600.0


@given(st.data())
def test_whatever_happens_no_shard_is_lost_or_done_twice(data):
    schedule = _schedule(shards=range(6), workers=(), max_attempts=2)
    done: list[int] = []
    held: dict[str, list[int]] = {}
    names = iter(range(10**6))
    for _ in range(200):
        if schedule.finished:
            break
        while schedule.workers_missing(0):
            schedule.add_worker(f"w{next(names)}")
        for assignment in schedule.take_assignments(0.0):
            held.setdefault(assignment.worker, []).append(assignment.shard)
        worker = data.draw(st.sampled_from(sorted(w for w in held if held[w])))
        fate = data.draw(st.sampled_from(["done", "done", "fail", "lost", "preempted", "idle", "leaving"]))
        if fate == "done":
            done.append(held[worker].pop(0))
            schedule.shard_done(worker, done[-1], 0.0)
        elif fate == "fail":
            schedule.shard_failed(worker, held[worker].pop(0))
        elif fate == "leaving":
            schedule.stop_feeding(worker)
            for released in schedule.workers_released():
                held.pop(released, None)
                schedule.worker_lost(released)
        else:
            held.pop(worker)
            schedule.worker_lost(worker, blameless=fate == "preempted", begun=fate != "idle")

    in_flight = [shard for shards in held.values() for shard in shards]
    assert sorted([*done, *in_flight, *schedule.pending, *schedule.given_up]) == list(range(6))


def test_repairs_of_a_few_images_set_no_deadline_for_whole_shards():
    """A start that mends 40 shards in seconds must not take a sound shard of minutes for one that hangs."""
    schedule = Schedule(range(42), make_config(workers=1, shard_timeout_s=3600.0), partial=range(40))
    schedule.add_worker("a")
    for shard in range(40):
        _assigned(schedule, now=2.0 * shard)
        schedule.shard_done("a", shard, now=2.0 * shard + 2.0)
    _assigned(schedule, now=100.0)

    assert schedule.overdue(now=100.0 + 10 * DEADLINE_FLOOR_S) == []
    assert schedule.deadline(40) == 3600.0


def test_every_worker_is_given_the_shard_it_reads_ahead_of_as_long_as_it_is_pending():
    schedule = Schedule(range(9), make_config(workers=3))
    for name in "abc":
        schedule.add_worker(name)
    first = {a.worker: a.shard for a in schedule.take_assignments(0)}
    following = likely_next(range(9), 3)
    for name in "bca":  # in whatever order they end
        schedule.shard_done(name, first[name], 1)
        (given,) = schedule.take_assignments(1)
        assert (given.worker, given.shard) == (name, following[first[name]])
    assert sorted(schedule.pending) == [6, 7, 8]


def test_shards_that_a_lost_worker_was_to_read_are_done_by_the_others():
    schedule = Schedule(range(6), make_config(workers=2))
    schedule.add_worker("a")
    schedule.add_worker("b")
    shards = {a.worker: a.shard for a in schedule.take_assignments(0)}
    schedule.worker_lost("b")
    done = []
    while not schedule.finished:
        schedule.shard_done("a", shards["a"], 1)
        done.append(shards["a"])
        shards = {a.worker: a.shard for a in schedule.take_assignments(1)}
    assert sorted(done) == list(range(6))
