"""How many failures a run may have, judged on the way and at its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.cli import main
from dto_pipeline.config import PipelineConfig, load_config
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.data.receipts import Receipt
from dto_pipeline.run.folder import RunDirectory
from dto_pipeline.run.identity import hash_settings
from dto_pipeline.run.loop import Schedule, TooManyFailed, drive
from dto_pipeline.run.sanity import (
    FAILED_IN_A_ROW,
    JUDGED_FROM,
    UNUSABLE_IMAGES,
    FailureBudget,
)
from dto_pipeline.status import ImageStatus
from tests.run.fakes import DIE, DONE, RAISE, FakeLedger, FakePool, make_config, make_receipt
from tests.tiny_dataset import TinyDataset, write_tiny_dataset

IMAGES, SHARD_IMAGES = 45, 5
QUIET = ("--workers=0", "--set=run.device=cpu", "--set=body.model_path=demo", "--quiet")


def receipt(shard: int, images: int = 50, people: int = 150, **counts: int) -> Receipt:
    """A receipt with so many images and people of some statuses; the rest is well."""
    image_words = {word: count for word, count in counts.items() if word in set(ImageStatus)}
    person_words = {word: count for word, count in counts.items() if word not in set(ImageStatus)}
    return make_receipt(
        shard,
        images=images,
        rows=images,
        persons=people,
        image_status={**image_words, "optimized": images - sum(image_words.values())},
        person_status={**person_words, "moved": people - sum(person_words.values())},
    )


def verdict(share: float, *receipts: Receipt) -> str:
    """What the end of a run of these shards says."""
    budget = FailureBudget(share, {})
    for one in receipts:
        budget.shard_done(one)
    return budget.verdict()


@pytest.fixture
def tiny(tmp_path: Path, body) -> TinyDataset:
    """Images in nine shards, and no depth map of any."""
    data = write_tiny_dataset(tmp_path / "data", body, IMAGES, SHARD_IMAGES, broken=False)
    (tmp_path / "data/depth").rename(tmp_path / "kept")
    (tmp_path / "data/depth").mkdir()
    return data


def start(tiny: TinyDataset, *more: str) -> int:
    return main(["run", str(tiny.manifest), "-o", str(tiny.manifest.parent / "run"), *QUIET, *more])


def test_a_launch_in_which_everything_fails_stops_early_names_cause_and_step_and_goes_on_once_mended(
    tiny: TinyDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(tiny) == 1
    said = capsys.readouterr().err
    assert "25 of 25 images could not be used, more than 0.05 of all (run.max_failed_images)" in said
    assert "depth_missing           25  No depth map was found" in said
    assert "for example tiny/000000.jpg: depth map 000000.npy does not exist" in said
    assert "start again with --retry-failed" in said
    receipts = RunDirectory(tiny.manifest.parent / "run").at("receipts")
    assert len(list(receipts.iterdir())) == 5

    depth = tiny.manifest.parent / "depth"
    depth.rmdir()
    shutil.move(tiny.manifest.parent.parent / "kept", depth)
    assert start(tiny) == 1  # goes on to its end; what failed before is still there
    assert "25 of 45 images could not be used" in capsys.readouterr().out
    assert len(list(receipts.iterdir())) == IMAGES // SHARD_IMAGES
    assert start(tiny, "--retry-failed") == 0


def test_a_share_of_one_lets_everything_through(tiny: TinyDataset) -> None:
    assert start(tiny, "--set", "run.max_failed_images=1") == 0


def test_a_small_run_is_done_to_its_end_and_then_ends_with_1(tmp_path: Path, body, capsys) -> None:
    tiny = write_tiny_dataset(tmp_path, body)
    assert start(tiny, "--json") == 1
    assert json.loads(capsys.readouterr().out)["over_budget"].startswith("3 of 9 images")


@pytest.mark.parametrize("status", UNUSABLE_IMAGES)
def test_every_kind_of_unusable_image_counts(status: ImageStatus) -> None:
    assert verdict(0.05, receipt(0, **{status: 3})).startswith("3 of 50 images could not be used")


@pytest.mark.parametrize("status", [status for status in ImageStatus if status not in UNUSABLE_IMAGES])
def test_what_the_method_decides_about_sound_images_never_counts(status: ImageStatus) -> None:
    people = {"too_small": 50, "alone_in_group": 50, "too_tall": 50}
    assert verdict(0.0, receipt(0, **{status: 50}, **people)) == ""


def test_people_whose_labels_are_invalid_count_by_themselves_and_hidden_ones_do_not() -> None:
    lost = receipt(0, invalid_label=4), receipt(1, invalid_label=12, empty_mask=99)
    assert verdict(0.05, *lost).splitlines()[1].split()[:2] == ["invalid_label", "16"]
    assert verdict(0.06, *lost) == ""


def test_the_commonest_cause_comes_first() -> None:
    text = verdict(0.05, receipt(0, image_missing=3), receipt(1, depth_missing=9))
    assert [line.split()[0] for line in text.splitlines()[1:3]] == ["depth_missing", "image_missing"]


@given(st.lists(st.integers(0, 50), max_size=20), st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]))
def test_a_launch_is_stopped_only_where_it_lost_more_than_the_share_of_what_it_saw(
    failed: list[int], share: float
) -> None:
    budget = FailureBudget(share, {})
    lost = seen = 0
    for shard, count in enumerate(failed):
        budget.shard_done(receipt(shard, image_missing=count))
        lost, seen = lost + count, seen + 50
        assert bool(budget.complaint()) == (share < 1 and lost > share * max(seen, JUDGED_FROM))


def test_repairs_are_not_judged_on_the_way() -> None:
    budget = FailureBudget(0.05, {0: 50}, repairs=[0])
    budget.shard_done(receipt(0, image_missing=50))
    assert budget.complaint() == ""


def test_shards_that_are_given_up_lose_their_images() -> None:
    budget = FailureBudget(0.05, {0: 50, 1: 50})
    budget.attempt_failed(0, False, "disk")
    assert budget.complaint() == ""
    budget.attempt_failed(0, True, "disk")
    assert "50 of 50 images" in budget.complaint()
    assert "disk" in budget.complaint()


@pytest.mark.parametrize("fate", [RAISE, DIE])
def test_shards_that_all_fail_stop_the_run_before_all_were_tried(fate: str) -> None:
    pool, ledger = FakePool(lambda shard, attempt: fate), FakeLedger()
    budget = FailureBudget(0.05, dict.fromkeys(range(4000), 50), workers=2)
    with pytest.raises(TooManyFailed, match=r"10 shards failed one after the other.*it (raised|died)") as caught:
        drive(Schedule(range(4000), make_config()), pool, ledger, budget)
    assert caught.value.exit_code == 1
    assert len(ledger.failed) == FAILED_IN_A_ROW


def test_many_workers_that_die_by_chance_do_not_stop_a_run_in_which_shards_are_finished() -> None:
    fate = dict.fromkeys(range(0, 400, 2), DIE)
    pool, ledger = FakePool(lambda shard, attempt: fate.get(shard, DONE) if attempt == 1 else DONE), FakeLedger()
    budget = FailureBudget(0.5, dict.fromkeys(range(400), 4), workers=8)
    drive(Schedule(range(400), make_config(workers=8)), pool, ledger, budget)
    assert sorted(ledger.done) == list(range(400))


def test_the_share_is_no_part_of_what_labels_are() -> None:
    more = load_config(overrides=["run.max_failed_images=0.3"])
    assert hash_settings(more.to_dict(), {}) == hash_settings(PipelineConfig().to_dict(), {})


@pytest.mark.parametrize("share", ["5", "-0.1", ".nan"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.max_failed_images (is|must be)"):
        load_config(overrides=[f"run.max_failed_images={share}"])
