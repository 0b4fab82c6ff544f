"""The lease: who may drive a run, judged without believing anybody's clock."""

import dataclasses
import itertools
import json

import pytest

from dto_pipeline.config import PipelineConfig, RunConfig, load_config
from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.receipts import count_labels, label_name, receipt_name
from dto_pipeline.data.storage import LocalStore, open_store
from dto_pipeline.run import folder as files
from dto_pipeline.run import lease as module
from dto_pipeline.run.folder import Failure, RunDirectory
from dto_pipeline.run.lease import DriverLock, RunLocked, RunLockLost, read_holder, read_newest
from tests.memory_store import clear_memory
from tests.run.fakes import make_receipt

CALM = RunConfig(lease_s=3000.0, heartbeat_s=900.0)  # nothing happens by itself within a test
QUICK = RunConfig(lease_s=30.0, heartbeat_s=0.02)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(module, "LOOK_S", 0.01)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return LocalStore(tmp_path)
    clear_memory()
    return open_store("memory://leases/run")


def jumping_clock(step: float):
    """A clock that moves on by `step` seconds whenever it is looked at."""
    ticks = itertools.count()
    return lambda: next(ticks) * step


def put(store, epoch: int, **changes) -> None:
    """A lease file of a driver on another host."""
    record = dataclasses.replace(module.new_record(QUICK), machine="other boot/pid:[1]", host="far", pid=77, **changes)
    store.replace(
        f"lease/{epoch:08d}.json", json.dumps({"schema": "dto-lease/1", **dataclasses.asdict(record)}).encode()
    )


def held(store, config=CALM, **options) -> DriverLock:
    return DriverLock(store.root, config, **options).__enter__()


def test_a_lease_can_be_had_again_after_it_was_left_and_its_number_grows(store):
    for epoch in (1, 2, 3):
        lease = held(store)
        assert read_newest(store)[0] == epoch
        lease.__exit__()
    assert list(store.entries("lease")) == ["00000003.json"]


def test_a_silent_driver_of_another_host_is_followed_when_its_lease_has_passed(store):
    put(store, 4)

    held(store, clock=jumping_clock(10.0)).__exit__()

    assert read_newest(store)[0] == 5


@pytest.mark.parametrize("said", ["1999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_what_another_hosts_clock_says_decides_nothing(store, said):
    put(store, 1, since=said, beat_at=said)
    looks = itertools.count()

    def clock() -> float:
        """Stands at 29 of 30 seconds for a while: nobody is taken over before its lease has passed here."""
        look = next(looks)
        assert look > 6 or read_newest(store)[0] == 1
        return 0.0 if look < 2 else 29.0 if look < 6 else 31.0

    held(store, clock=clock).__exit__()
    assert next(looks) > 6


def test_a_driver_that_beats_is_not_followed_and_is_named(store, monkeypatch):
    owner = held(store, QUICK)
    monkeypatch.setattr(module, "machine_mark", lambda: "another boot/pid:[2]")

    with pytest.raises(RunLocked, match=r"being worked on by process \d+ on .* since .*its lease ends 30 s after"):
        DriverLock(store.root, CALM).__enter__()
    owner.check()
    owner.__exit__()


def test_a_driver_that_leaves_while_it_is_watched_is_followed_at_once(store, monkeypatch):
    put(store, 1)
    newest = module.read_newest

    def leave_then_read(store):
        put(store, 1, released=True)
        return newest(store)

    looks = itertools.count()
    monkeypatch.setattr(module, "read_newest", lambda s: (leave_then_read if next(looks) else newest)(s))

    held(store, clock=lambda: 0.0).__exit__()


def test_an_unreadable_lease_is_watched_for_two_heartbeats(store):
    store.replace("lease/00000002.json", b"{")

    held(store, RunConfig(lease_s=3000.0, heartbeat_s=0.02)).__exit__()

    assert read_newest(store)[0] == 3


def test_a_dead_driver_of_this_machine_is_not_waited_for(store, monkeypatch):
    held(store)._stop.set()
    monkeypatch.setattr(module, "process_mark", lambda pid: "")

    held(store, clock=lambda: 0.0).__exit__()


def test_of_two_drivers_that_saw_the_same_lease_expire_one_gets_it(store):
    first, second = DriverLock(store.root, CALM), DriverLock(store.root, CALM)

    assert [first._claim(3), second._claim(3), second._claim(4)] == [True, False, True]


def test_an_answer_lost_on_the_way_does_not_lose_the_lease(store, monkeypatch):
    create = type(store).create
    monkeypatch.setattr(type(store), "create", lambda self, name, data: create(self, name, data) and False)

    lease = held(store)

    lease.check()


def test_a_driver_that_slept_through_a_take_over_stops_and_leaves_the_new_one_alone(store):
    sleeper = held(store)
    put(store, 2)

    sleeper.beat()
    with pytest.raises(RunLockLost, match="taken over by process 77 on far"):
        sleeper.check()
    sleeper.__exit__()
    assert list(store.entries("lease")) == ["00000001.json", "00000002.json"]
    newest = module.parse_lease(read_newest(store)[1])
    assert newest is not None
    assert not newest.released


def test_a_driver_that_cannot_say_that_it_lives_stops_when_its_lease_has_passed(store, monkeypatch):
    now = [0.0]
    lease = held(store, clock=lambda: now[0])

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(store), "replace", fail)
    now[0] = 2000.0
    lease.beat()
    lease.check()
    now[0] = 3001.0
    lease.beat()
    with pytest.raises(RunLockLost, match=r"could not be renewed for 3001 s .*No space left"):
        lease.check()


def test_what_a_driver_does_that_lost_its_run_changes_no_label_that_counts(tmp_path):
    """It planned while shard 1 was damaged and shard 2 repaired, froze, and goes on when another one has mended all."""
    directory = RunDirectory(tmp_path)
    directory.create_folders()
    store = directory.store

    def finish(shard: int, generation: int) -> None:
        receipt = make_receipt(shard, generation=generation, label_bytes=3)
        store.create(label_name(shard, generation), b"abc")
        store.create(receipt_name(shard, generation), json_bytes(receipt.to_dict()))

    finish(1, 0)
    finish(2, 0)
    finish(2, 1)
    lock = directory.lock(CALM).__enter__()
    found = files.RunScan(**vars(count_labels(directory.root, "config", "manifest"))).without({1: "a flipped bit"})
    put(store, 2)
    store.remove(label_name(1))
    store.remove(label_name(2))
    finish(1, 1)
    files.remove_surplus(directory, found)
    files.record_failure(directory, Failure(1, 3, True, "it raised", "a:1", 5.0))

    counted = count_labels(directory.root, "config", "manifest")
    assert {shard: receipt.generation for shard, receipt in counted.done.items()} == {1: 1, 2: 1}
    assert sorted(store.entries("labels")) == ["shard-00001.r1.parquet", "shard-00002.r1.parquet"]
    with pytest.raises(RunLockLost):
        lock.check(ask=True)
    lock.__exit__()


def test_status_names_a_driver_of_another_host(tmp_path):
    put(LocalStore(tmp_path), 1)
    holder = read_holder(tmp_path)

    assert holder is not None
    assert (holder.pid, holder.host, holder.state) == (77, "far", "on another host")


def test_on_a_local_folder_a_paused_driver_of_this_machine_is_never_taken_for_dead(tmp_path):
    with DriverLock(tmp_path, CALM), pytest.raises(RunLocked, match=r"being worked on by process \d+"):
        DriverLock(tmp_path, QUICK, jumping_clock(1000.0)).__enter__()


@pytest.mark.parametrize(("seconds", "expected"), [(0, "more than 0"), (30, "at most a third")])
def test_a_heartbeat_that_does_not_fit_the_lease_is_refused(seconds, expected):
    with pytest.raises(ValueError, match=expected):
        load_config(overrides=[f"run.heartbeat_s={seconds}"])
    assert PipelineConfig().run.heartbeat_s * 3 <= PipelineConfig().run.lease_s
