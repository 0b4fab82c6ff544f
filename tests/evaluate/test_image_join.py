"""Images of two files: the same image under different folders is found, different images are not mixed up."""

from __future__ import annotations

import time

import pytest

from dto_pipeline.evaluate.matching import ImageJoinError, join_images


def test_equal_names_are_equal_images() -> None:
    join = join_images(["b.jpg", "a.jpg", "c.jpg"], ["a.jpg", "b.jpg", "d.jpg"])
    assert join.found.tolist() == [1, 0, -1]
    assert join.unmatched == 1
    assert join.note == ""


def test_folders_only_one_side_writes_do_not_matter() -> None:
    join = join_images(["insta-train/a/b/c.jpg", "insta-train/a/b/d.jpg"], ["a/b/d.jpg", "a/b/c.jpg"])
    assert join.found.tolist() == [1, 0]
    assert "last 3 part(s)" in join.note


def test_a_short_name_that_several_images_share_joins_none_of_them() -> None:
    join = join_images(["x/1.jpg", "y/1.jpg", "z/2.jpg"], ["1.jpg", "2.jpg"])
    assert join.found.tolist() == [-1, 2]
    assert join.unmatched == 2


def test_no_image_in_common_is_an_error_that_shows_both_sides() -> None:
    with pytest.raises(ImageJoinError, match=r"a\.jpg.*b\.jpg"):
        join_images(["a.jpg"], ["b.jpg"])


def test_names_of_a_whole_data_set_are_joined_in_seconds() -> None:
    """One look at every name: a look at all names for each of them would take minutes."""
    names = [f"a/{number}.jpg" for number in range(20_000)]
    started = time.process_time()
    assert join_images(names, names[::-1]).found[0] == len(names) - 1
    assert time.process_time() - started < 10
