"""What a start is limited to, and which failures it takes up again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.run.plan import Retry, Selection, SelectionError


def test_ranges_are_closed_and_may_overlap():
    assert Selection("3-5, 12,4-6").find_shards(20, "coco") == {3, 4, 5, 6, 12}


@pytest.mark.parametrize("text", ["a", "3-", "-3", "7-3", "1,,2", "5-10", "10"])
def test_a_range_that_means_nothing_is_refused_with_what_there_is(text):
    with pytest.raises(SelectionError, match=r"3-7,12|0 to 9"):
        Selection(text).find_shards(10, "coco")


@given(st.sets(st.integers(0, 99), min_size=1))
def test_every_set_of_shards_can_be_written(shards):
    assert Selection(",".join(map(str, shards))).find_shards(100, "coco") == shards


def test_a_limit_takes_whole_shards_in_order_and_at_least_one():
    work = {4: 30, 2: 50, 7: 40}

    assert Selection(limit=1).take(work) == [2]
    assert Selection(limit=80).take(work) == [2, 4]
    assert Selection(limit=119).take(work) == [2, 4]
    assert Selection(limit=120).take(work) == [2, 4, 7]
    assert Selection().take(work) == [2, 4, 7]


def test_a_subset_the_manifest_does_not_hold_is_refused_by_name():
    assert Selection(subsets=("coco",)).find_shards(3, "coco") == {0, 1, 2}
    with pytest.raises(SelectionError, match="'coco', not 'mpii'"):
        Selection(subsets=("mpii",)).find_shards(3, "coco")


def test_a_retry_without_statuses_takes_everything_that_failed():
    retry = Retry.of(True)

    assert retry.shards
    assert {"depth_missing", "worker_died"} <= retry.images
    assert "optimized" not in retry.images


def test_statuses_narrow_a_retry_to_images_and_failed_means_shards():
    assert Retry.of(True, ["depth_missing"]) == Retry(False, frozenset({"depth_missing"}))
    assert Retry.of(True, ["failed"]) == Retry(True, frozenset())


def test_a_status_that_is_no_failure_or_without_a_retry_is_refused():
    with pytest.raises(SelectionError, match=r"optimized.*choose from.*depth_missing"):
        Retry.of(True, ["optimized"])
    with pytest.raises(SelectionError, match="--retry-failed"):
        Retry.of(False, ["depth_missing"])
    assert Retry.of(False) == Retry()
