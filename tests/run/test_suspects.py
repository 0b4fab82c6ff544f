"""Which image ended its process: what is noted, what is concluded, and that chance condemns nobody."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.config import RunConfig
from dto_pipeline.data.receipts import label_name, receipt_name
from dto_pipeline.run import folder as files
from dto_pipeline.run.deaths import (
    SHORT_OF_MEMORY,
    InFlight,
    Suspects,
    charge_own_deaths,
    find_condemned,
    find_suspicion,
    note_name,
    read_note,
    work_one_by_one,
    write_note,
)
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import Failure, RunDirectory
from dto_pipeline.status import ImageStatus
from tests.chaos.arena import build_demo_manifest
from tests.run.chaos import label_bytes, tiny_config
from tests.run.poison import POISON, check_poisoned

CONFIG = RunConfig(max_attempts=3, max_poison_images=2)
REPOSITORY = Path(__file__).parents[2]


def failed(
    deaths: int = 0, shard: int = 0, attempts: int = 0, error: str = "", worker: str = "", **suspects: int
) -> Failure:
    """A shard with so many deaths, and images that they happened at."""
    return Failure(shard, attempts, False, error, worker, 0.0, deaths=deaths, suspects=suspects)


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create_folders()
    return directory


def test_suspects_are_worked_first_and_the_condemned_not_at_all():
    noted = []
    images = ["a", "b", "c", "d"]

    failure = failed(3, c=1, b=2)
    done = work_one_by_one(images, failure, lambda i: images[i].upper(), lambda *note: noted.append(note))

    assert done == {0: "A", 2: "C", 3: "D"}
    assert noted == [("c", ()), ("a", ("c",)), ("d", ("c",))]


def test_only_the_last_tries_of_a_shard_that_ended_processes_are_worked_one_by_one(directory):
    assert find_suspicion(directory, 0, attempt=3, max_attempts=3) is None
    files.record_failure(directory, Failure(0, 2, False, "it died", "a:1", 0.0, deaths=1, suspects={"x": 1}))
    files.record_failure(directory, Failure(1, 2, False, "it raised", "a:1", 0.0))

    assert find_suspicion(directory, 0, attempt=2, max_attempts=3) is None
    assert find_suspicion(directory, 0, attempt=3, max_attempts=3) == failed(1, 0, 2, "it died", "a:1", x=1)
    assert find_suspicion(directory, 1, attempt=3, max_attempts=3) is None


def test_an_image_is_condemned_by_its_second_death_in_a_row(directory):
    suspects = Suspects(directory, {}, CONFIG)
    for attempt in (3, 4):
        write_note(directory, InFlight(0, attempt, "x"))
        assert suspects.allows_another(0, attempt)

    assert find_condemned(suspects.of(0)).keys() == {"x"}


def test_an_image_that_came_through_in_between_is_free_of_failure(directory):
    suspects = Suspects(directory, {}, CONFIG)
    for attempt, image in ((3, "x"), (4, "y"), (5, "x")):
        survived = ("x",) if image == "y" else ()
        write_note(directory, InFlight(0, attempt, image, survived))
        suspects.allows_another(0, attempt)

    assert not find_condemned(suspects.of(0))
    assert suspects.of(0).suspects == {"x": 1, "y": 1}


@pytest.mark.parametrize("note", [None, InFlight(0, 2, "x"), InFlight(0, 3, "")])
def test_a_death_without_a_note_of_an_image_in_that_attempt_gets_no_further_one(directory, note):
    if note is not None:
        write_note(directory, note)
    suspects = Suspects(directory, {}, CONFIG)

    assert not suspects.allows_another(0, 3)
    assert suspects.of(0) == failed(1)
    assert read_note(directory, 0) is None


def test_a_shard_that_lacks_nothing_but_its_receipt_is_not_given_up(directory):
    directory.store.create(label_name(0), b"labels")
    suspects = Suspects(directory, {}, CONFIG)
    assert suspects.allows_another(0, 3)

    directory.store.create(receipt_name(0), b"{}")  # a repair of a finished shard: its death is its own
    assert not suspects.allows_another(0, 3)


def test_a_shard_of_nothing_but_poison_is_given_up_in_the_end(directory):
    suspects = Suspects(directory, {}, CONFIG)
    another, attempt = True, 2
    while another:
        attempt += 1
        first = next(image for image in "abcdefgh" if image not in find_condemned(suspects.of(0)))
        write_note(directory, InFlight(0, attempt, first))
        another = suspects.allows_another(0, attempt)

    assert attempt == 2 + 2 * (CONFIG.max_poison_images + 1)


@given(st.integers(0, 10**6))
def test_chance_kills_condemn_no_image_unless_it_dies_twice_in_a_row(seed):
    """Whatever order of deaths: condemned means that the last two attempts that reached the image died with it."""
    chance = random.Random(seed)
    fates: dict[str, list[str]] = {image: [] for image in "abc"}
    failure = failed()
    for _ in range(6):
        order: list[str] = []

        def note(image, survived, order=order):
            order.append(image)

        images = sorted(fates)
        work_one_by_one(images, failure, lambda i: None, note)
        if not order:
            break
        died = chance.randrange(len(order))
        for image in order[:died]:
            fates[image].append("lived")
            if image in failure.suspects:
                failure.suspects.pop(image)
        fates[order[died]].append("died")
        failure.suspects[order[died]] = failure.suspects.get(order[died], 0) + 1

    for image in find_condemned(failure):
        assert fates[image][-2:] == ["died", "died"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": "dto-in-flight/1", "strange": 1}', b'{"schema": "x"}']
)
def test_a_note_that_means_nothing_is_none(directory, content):
    directory.store.replace(note_name(0), content)

    assert read_note(directory, 0) is None


def test_where_memory_ran_out_the_row_names_memory_and_not_the_image(directory):
    suspects = Suspects(directory, {}, CONFIG)
    for attempt, memory in ((3, False), (4, True)):
        write_note(directory, InFlight(0, attempt, "x"))
        suspects.allows_another(0, attempt, memory)

    assert find_condemned(suspects.of(0)).keys() == {"x"}
    assert find_condemned(suspects.of(0))["x"] == (ImageStatus.OUT_OF_MEMORY, SHORT_OF_MEMORY)


def test_an_image_that_came_through_is_free_of_what_memory_did_before(directory):
    suspects = Suspects(directory, {}, CONFIG)
    for attempt, image, survived, memory in ((3, "x", (), True), (4, "y", ("x",), True), (5, "x", (), False)):
        write_note(directory, InFlight(0, attempt, image, survived))
        suspects.allows_another(0, attempt, memory)
    write_note(directory, InFlight(0, 6, "x"))
    suspects.allows_another(0, 6)

    assert find_condemned(suspects.of(0))["x"][0] is ImageStatus.WORKER_DIED


@pytest.mark.parametrize(("later", "memory"), [(1, False), (2, True)])
def test_a_driver_whose_machine_ended_it_for_want_of_memory_leaves_that_as_the_reason(
    directory, tmp_path, monkeypatch, later, memory
):
    monkeypatch.setattr("dto_pipeline.run.deaths._own_counters", lambda: [tmp_path / "memory.events"])
    (tmp_path / "memory.events").write_text("low 0\nhigh 7\nmax 3\noom 2\noom_kill 1\n")
    write_note(directory, InFlight(0, 1, "x", driver=True))
    (tmp_path / "memory.events").write_text(f"oom_kill {later}\n")
    (failure,) = charge_own_deaths(directory, CONFIG, now=5.0)

    assert failure.memory == ({"x": 1} if memory else {})
    assert ("memory ran out" in failure.error) == memory
    assert files.read_shard_failure(directory, 0) == failure


def test_notes_of_workers_whose_driver_died_charge_nobody(directory):
    write_note(directory, InFlight(0, 3, "x"))

    assert charge_own_deaths(directory, CONFIG, now=5.0) == []
    assert directory.store.entries("failures") == {}


def test_a_driver_that_died_at_a_shard_is_charged_to_it_at_the_next_start(directory):
    files.record_failure(directory, Failure(0, 2, False, "it died", "a:1", 0.0, deaths=2))
    write_note(directory, InFlight(0, 3, "x", driver=True))
    (failure,) = charge_own_deaths(directory, CONFIG, now=5.0)

    assert (failure.attempts, failure.deaths, failure.suspects, failure.given_up) == (3, 3, {"x": 1}, False)
    assert files.read_shard_failure(directory, 0) == failure


def test_a_driver_that_died_beside_a_damaged_failure_record_is_charged_as_for_a_first_try(directory):
    directory.store.replace(files.failure_name(0), b"{")
    write_note(directory, InFlight(0, 1, "x", driver=True))
    (failure,) = charge_own_deaths(directory, CONFIG, now=5.0)

    assert (failure.attempts, failure.deaths, failure.suspects) == (1, 1, {"x": 1})


def test_a_damaged_failure_record_casts_no_failure(directory):
    directory.store.replace(files.failure_name(0), b"{")

    assert find_suspicion(directory, 0, attempt=3, max_attempts=3) is None


def test_a_shard_worked_one_by_one_has_the_same_bytes(tiny, tmp_path, undisturbed):
    directory = RunDirectory(tmp_path / "run")
    run_pipeline(tiny.manifest, directory.root, tiny_config(max_attempts=1), progress=False, runner=None)
    for shard in range(6):
        directory.label_file(shard).unlink()
        directory.receipt_file(shard).unlink()
        files.record_failure(directory, Failure(shard, 2, False, "it died", "a:1", 0.0, deaths=2))
    summary = run_pipeline(tiny.manifest, directory.root, tiny_config(), progress=False)

    assert (summary.exit_code, summary.retries) == (0, 12)
    assert label_bytes(directory.root) == undisturbed
    assert directory.store.entries("failures") == {}


@pytest.mark.slow
def test_an_image_that_kills_the_driver_is_found_by_the_next_starts(tiny, tmp_path, undisturbed):
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "tests.run.poison", tiny.manifest, directory.root, POISON]
    codes: list[int] = []
    while not codes or (codes[-1] != 0 and len(codes) < 6):
        codes.append(subprocess.run([str(part) for part in command], cwd=REPOSITORY, check=False).returncode)

    assert codes == [-9, -9, -9, -9, 0]  # twice together, twice alone, then without it
    check_poisoned(directory, undisturbed)


def test_a_shard_worked_image_by_image_has_the_bytes_of_one_worked_together(tmp_path):
    manifest = build_demo_manifest(tmp_path / "data", images=8, shard_images=4)  # two to ten people in any pose
    run_pipeline(manifest, tmp_path / "together", tiny_config(batch_images=8), progress=False)
    shutil.copytree(tmp_path / "together", tmp_path / "alone")
    alone = RunDirectory(tmp_path / "alone")
    for shard, _ in enumerate(label_bytes(tmp_path / "together")):
        (tmp_path / "alone" / label_name(shard)).unlink()
        (tmp_path / "alone" / receipt_name(shard)).unlink()
        files.record_failure(alone, Failure(shard, 2, False, "it died", "a:1", 0.0, deaths=2))

    run_pipeline(manifest, tmp_path / "alone", tiny_config(batch_images=8), progress=False)

    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "alone" / "receipts").iterdir()]
    assert {receipt["attempt"] for receipt in receipts} == {3}
    assert label_bytes(tmp_path / "alone") == label_bytes(tmp_path / "together")
