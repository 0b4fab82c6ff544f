"""The image that ends its process is found by notes and counts of deaths; random kills leave out no image."""

import json
import shutil
import tempfile
from contextlib import suppress
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
    count_death,
    find_deadly,
    find_earlier_deaths,
    note_name,
    oom_kills,
    read_note,
    work_one_by_one,
    write_note,
)
from dto_pipeline.run.driver import run_pipeline
from dto_pipeline.run.folder import Failure, RunDirectory
from dto_pipeline.status import ImageStatus
from tests.chaos.arena import build_demo_manifest
from tests.run.chaos import label_bytes, tiny_config

CONFIG = RunConfig(max_attempts=3, max_poison_images=2)


def failed(
    deaths: int = 0, shard: int = 0, attempts: int = 0, error: str = "", worker: str = "", **suspects: int
) -> Failure:
    """A shard with so many deaths, and images that they happened at."""
    return Failure(shard, attempts, False, error, worker, 0.0, deaths=deaths, suspects=suspects)


class Deaths:
    """The failure record of shard 0, as the driver keeps it."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory, self.failure = directory, failed()

    def allows_another(self, attempt: int, memory: bool = False) -> bool:
        self.failure, another = count_death(self.directory, self.failure, attempt, memory, CONFIG)
        return another


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create_folders()
    return directory


def test_images_with_earlier_deaths_come_first_and_deadly_ones_are_left_out(directory):
    images, noted = ["a", "b", "c", "d"], []

    def work(position: int) -> str:
        note = read_note(directory, 0)
        assert note is not None
        noted.append((note.image, note.survived))
        return images[position].upper()

    rows = work_one_by_one(directory, failed(3, c=1, b=2), 3, images, work, lambda i, status, message: f"{i} {status}")

    assert rows == ["A", "1 worker_died", "C", "D"]
    assert noted == [("c", ()), ("a", ("c",)), ("d", ("c",))]


def test_only_the_last_attempts_at_a_shard_whose_process_died_go_image_by_image(directory):
    assert find_earlier_deaths(directory, 0, attempt=3, max_attempts=3) is None
    files.record_failure(directory, Failure(0, 2, False, "it died", "a:1", 0.0, deaths=1, suspects={"x": 1}))
    files.record_failure(directory, Failure(1, 2, False, "it raised", "a:1", 0.0))

    assert find_earlier_deaths(directory, 0, attempt=2, max_attempts=3) is None
    assert find_earlier_deaths(directory, 0, attempt=3, max_attempts=3) == failed(1, 0, 2, "it died", "a:1", x=1)
    assert find_earlier_deaths(directory, 1, attempt=3, max_attempts=3) is None


def test_an_image_is_deadly_after_two_deaths_in_a_row(directory):
    deaths = Deaths(directory)
    for attempt in (3, 4):
        write_note(directory, InFlight(0, attempt, "x"))
        assert deaths.allows_another(attempt)

    assert find_deadly(deaths.failure).keys() == {"x"}


def test_an_image_that_came_through_in_between_starts_from_zero(directory):
    deaths = Deaths(directory)
    for attempt, image in ((3, "x"), (4, "y"), (5, "x")):
        survived = ("x",) if image == "y" else ()
        write_note(directory, InFlight(0, attempt, image, survived))
        deaths.allows_another(attempt)

    assert not find_deadly(deaths.failure)
    assert deaths.failure.suspects == {"x": 1, "y": 1}


@pytest.mark.parametrize("note", [None, InFlight(0, 2, "x"), InFlight(0, 3, "")])
def test_a_death_without_a_note_of_an_image_in_that_attempt_gets_no_further_one(directory, note):
    if note is not None:
        write_note(directory, note)
    deaths = Deaths(directory)

    assert not deaths.allows_another(3)
    assert deaths.failure == failed(1)
    assert read_note(directory, 0) is None


def test_a_shard_of_nothing_but_poison_is_given_up_in_the_end(directory):
    deaths = Deaths(directory)
    another, attempt = True, 2
    while another:
        attempt += 1
        first = next(image for image in "abcdefgh" if image not in find_deadly(deaths.failure))
        write_note(directory, InFlight(0, attempt, first))
        another = deaths.allows_another(attempt)

    assert attempt == 2 + 2 * (CONFIG.max_poison_images + 1)


@given(st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_random_kills_make_no_image_deadly_unless_it_dies_twice_in_a_row(moments):
    """Whatever the order of deaths: the last two attempts that reached a deadly image died with it."""
    with tempfile.TemporaryDirectory() as name:
        directory, images = RunDirectory(Path(name)), ["a", "b", "c"]
        directory.create_folders()
        deaths, fates = Deaths(directory), {image: [""] for image in images}
        for attempt, moment in enumerate(moments, 3):
            reached: list[str] = []

            def work(position: int, reached: list[str] = reached, moment: int = moment) -> None:
                reached.append(images[position])
                if len(reached) > moment:
                    raise KeyboardInterrupt  # as if the process died

            with suppress(KeyboardInterrupt):
                work_one_by_one(directory, deaths.failure, attempt, images, work, lambda *_: None)
                break  # all came through
            for image in reached:
                fates[image].append("died" if image == reached[-1] else "lived")
            deaths.allows_another(attempt)
            for image in find_deadly(deaths.failure):
                assert fates[image][-2:] == ["died", "died"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": "dto-in-flight/1", "strange": 1}', b'{"schema": "x"}']
)
def test_a_note_that_cannot_be_read_is_none(directory, content):
    directory.store.replace(note_name(0), content)

    assert read_note(directory, 0) is None


def test_where_memory_ran_out_the_row_names_memory_and_not_the_image(directory):
    deaths = Deaths(directory)
    for attempt, memory in ((3, False), (4, True)):
        write_note(directory, InFlight(0, attempt, "x"))
        deaths.allows_another(attempt, memory)

    assert find_deadly(deaths.failure).keys() == {"x"}
    assert find_deadly(deaths.failure)["x"] == (ImageStatus.OUT_OF_MEMORY, SHORT_OF_MEMORY)


def test_an_image_that_came_through_is_free_of_earlier_deaths_for_lack_of_memory(directory):
    deaths = Deaths(directory)
    for attempt, image, survived, memory in ((3, "x", (), True), (4, "y", ("x",), True), (5, "x", (), False)):
        write_note(directory, InFlight(0, attempt, image, survived))
        deaths.allows_another(attempt, memory)
    write_note(directory, InFlight(0, 6, "x"))
    deaths.allows_another(6)

    assert find_deadly(deaths.failure)["x"][0] is ImageStatus.WORKER_DIED


def test_a_damaged_failure_record_counts_no_deaths(directory):
    directory.store.replace(files.failure_name(0), b"{")

    assert find_earlier_deaths(directory, 0, attempt=3, max_attempts=3) is None


def test_deaths_for_lack_of_memory_are_counted_by_the_container_first(tmp_path, monkeypatch):
    for name, text in (
        ("cgroup", "0::/box\n"),
        ("memory.events", "low 0\nhigh 7\noom_kill 3\n"),
        ("vmstat", "oom_kill 9\n"),
    ):
        (tmp_path / name).write_text(text)
    places = {
        "/proc/self/cgroup": "cgroup",
        "/sys/fs/cgroup/box/memory.events": "memory.events",
        "/proc/vmstat": "vmstat",
    }
    monkeypatch.setattr(
        "dto_pipeline.run.deaths.Path", lambda *parts: tmp_path / places.get("/".join(parts).replace("//", "/"), "none")
    )
    assert oom_kills() == 3
    (tmp_path / "memory.events").unlink()
    assert oom_kills() == 9
    (tmp_path / "vmstat").unlink()
    assert oom_kills() == -1


def test_a_shard_done_image_by_image_has_the_bytes_of_one_done_together(tmp_path):
    manifest = build_demo_manifest(tmp_path / "data", images=8, shard_images=4)  # two to ten people in any pose
    run_pipeline(manifest, tmp_path / "together", tiny_config(batch_images=8), progress=False)
    shutil.copytree(tmp_path / "together", tmp_path / "alone")
    alone = RunDirectory(tmp_path / "alone")
    for shard, _ in enumerate(label_bytes(tmp_path / "together")):
        (tmp_path / "alone" / label_name(shard)).unlink()
        (tmp_path / "alone" / receipt_name(shard)).unlink()
        files.record_failure(alone, Failure(shard, 2, False, "it died", "a:1", 0.0, deaths=2))

    summary = run_pipeline(manifest, tmp_path / "alone", tiny_config(batch_images=8), progress=False)

    receipts = [json.loads(path.read_bytes()) for path in (tmp_path / "alone" / "receipts").iterdir()]
    assert (summary.exit_code, {receipt["attempt"] for receipt in receipts}) == (0, {3})
    assert alone.store.entries("failures") == {}
    assert label_bytes(tmp_path / "alone") == label_bytes(tmp_path / "together")
