from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.paths import UnsafePath, check_relative, resolve_inside


@pytest.mark.parametrize(
    "name", ["", ".", "./", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "C:x", "a\\b", "a\0b", "\ud800"]
)
def test_names_that_could_leave_their_folder_are_refused(name):
    with pytest.raises(UnsafePath):
        check_relative(name)


def test_a_name_has_one_spelling():
    assert check_relative("a//./b.jpg") == "a/b.jpg" == check_relative("a/b.jpg")
    assert check_relative("..a/b..jpg") == "..a/b..jpg"


@given(st.text(max_size=20))
def test_what_is_let_through_stays_inside_the_root(name):
    try:
        path = resolve_inside("/root/folder", name)
    except UnsafePath:
        return
    assert path.is_relative_to("/root/folder")
    assert ".." not in path.parts
    assert path != Path("/root/folder")
