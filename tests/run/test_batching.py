"""Batches of a shard: complete, small enough, alike, and always the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.run.placing import (
    MAX_BATCH_PIXELS,
    MAX_PADDING,
    MAX_WINDOW_PIXELS,
    SceneSize,
    cut_windows,
    plan_batches,
)

_SIZES = st.lists(
    st.builds(SceneSize, st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 60)), min_size=0, max_size=60
)


@given(sizes=_SIZES, batch_images=st.integers(1, 16))
def test_every_image_is_in_exactly_one_batch(sizes, batch_images):
    batches = plan_batches(sizes, batch_images)

    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(1 <= len(batch) <= batch_images for batch in batches)


@given(sizes=_SIZES, batch_images=st.integers(1, 16))
def test_padding_stays_within_its_bound(sizes, batch_images):
    for batch in plan_batches(sizes, batch_images):
        members = [sizes[i] for i in batch]
        padded = len(members) * max(m.height for m in members) * max(m.width for m in members)
        own = sum(m.height * m.width for m in members)
        assert len(batch) == 1 or (padded <= MAX_PADDING * own and padded <= MAX_BATCH_PIXELS)


def test_images_of_one_shape_share_a_batch_wherever_they_stand_in_the_shard():
    small, large = SceneSize(120, 160, 2), SceneSize(1080, 1920, 2)

    batches = plan_batches([small, large, small, large, small], batch_images=8)

    assert batches == [[0, 2, 4], [1, 3]]


def test_equal_shapes_are_grouped_by_number_of_people():
    sizes = [SceneSize(120, 160, people) for people in (9, 1, 8, 2)]

    assert plan_batches(sizes, batch_images=2) == [[1, 3], [2, 0]]


def test_an_empty_shard_needs_no_batch():
    assert plan_batches([], 4) == []


def test_a_batch_of_nobody_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([], 0)


@given(sizes=_SIZES, images=st.integers(1, 16))
def test_windows_keep_the_order_and_hold_few_pixels(sizes, images):
    order = list(range(len(sizes)))[::-1]

    windows = cut_windows(sizes, order, images)

    assert [position for window in windows for position in window] == order
    for window in windows:
        pixels = sum(sizes[i].height * sizes[i].width for i in window)
        assert 1 <= len(window) <= images
        assert len(window) == 1 or pixels <= MAX_WINDOW_PIXELS


def test_photographs_of_a_hundred_megapixels_are_loaded_one_by_one():
    assert cut_windows([SceneSize(10000, 10000, 5)] * 3, [0, 1, 2], 8) == [[0], [1], [2]]
    assert cut_windows([SceneSize(3000, 4000, 5)] * 9, list(range(9)), 8) == [list(range(8)), [8]]
