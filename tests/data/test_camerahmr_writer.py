"""Label files we write are read back by the reader of published ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dto_pipeline.data.sources.camerahmr import open_camerahmr, write_camerahmr
from dto_pipeline.data.sources.rows import LabelRows

NAMES = np.array(["insta-train/0/0/a.jpg", "insta-train/0/0/a.jpg", "insta-train/0/0/b.jpg"])


def three_people() -> LabelRows:
    rng = np.random.default_rng(1)
    corners = np.array([[10.0, 20, 50, 60]] * 3)  # square: the layout keeps the longer side only
    return LabelRows(
        pose=rng.normal(size=(3, 72)).astype(np.float32),
        betas=np.pad(rng.normal(size=(3, 10)), ((0, 0), (0, 1))).astype(np.float32),
        transl=np.array([[0, 0, 3.0], [1, 0, 4], [0, 1, 5]], dtype=np.float32),
        bbox_xyxy=corners.astype(np.float32),
        intrinsics=np.repeat(np.array([[[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]]), 3, axis=0),
    )


def test_people_written_are_the_people_read(tmp_path: Path) -> None:
    rows = three_people()
    write_camerahmr(tmp_path / "a-release.npz", NAMES, rows, np.zeros((3, 44, 3)))
    labels = open_camerahmr(tmp_path / "a-release.npz")
    assert labels.image_names(0, 3).tolist() == NAMES.tolist()
    found = labels.rows(np.arange(3))
    for name in ("pose", "betas", "transl", "bbox_xyxy", "intrinsics"):
        np.testing.assert_allclose(getattr(found, name), getattr(rows, name), rtol=1e-5)


def test_equal_people_give_identical_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_camerahmr(tmp_path / name, NAMES, three_people())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    rows = replace(three_people(), transl=np.ones((2, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="one row per person"):
        write_camerahmr(tmp_path / "a.npz", NAMES, rows)
    assert list(tmp_path.iterdir()) == []
