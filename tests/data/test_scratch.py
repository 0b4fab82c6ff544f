"""Temporary columns: mapped, without a name, and whatever prevents them is said with the place."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile

import numpy as np
import pytest

from dto_pipeline.data.scratch import FlatColumn, scratch_file
from dto_pipeline.errors import DtoError
from tests.small_disks import files_no_larger_than


def test_a_column_comes_back_as_it_was_appended_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    column, empty = FlatColumn("f4", (2,)), FlatColumn("f8")
    parts = [np.arange(6.0).reshape(3, 2), np.zeros((0, 2)), np.full((1, 2), 1e300)]
    for part in parts:
        column.append(part)
    found = column.mapped()
    np.testing.assert_array_equal(found, [[0, 1], [2, 3], [4, 5], [np.inf, np.inf]])
    assert empty.mapped().shape == (0,)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


def test_a_folder_for_temporary_files_that_cannot_be_mapped_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch_file().close()
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(DtoError, match=rf"{tmp_path}.*set TMPDIR"):
        scratch_file()


def test_a_disk_without_room_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    column = FlatColumn("f8")
    with files_no_larger_than(1000), pytest.raises(OSError, match=str(tmp_path)) as caught:
        column.append(np.zeros(1 << 16))
    assert caught.value.errno == errno.EFBIG
