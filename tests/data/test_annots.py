"""Released DTO-Humans as a source: every person has a row, and one that is not as documented is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.data.sources.rows import LabelFileError, LabelRows, LabelSource
from tests.released_files import released_annots, write_released


def one(**changes: Any) -> dict[str, Any]:
    """A sound person, changed."""
    (person,) = released_annots(1, 1)["000000.jpg"]
    body, camera = dict(person["smpl_param"]), dict(person["cam_param"])
    for name, value in changes.items():
        (body if name in body else camera)[name] = value
    return {"smpl_param": body, "cam_param": camera}


def all_rows(source: LabelSource) -> LabelRows:
    return source.rows(np.arange(source.num_rows))


def test_people_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    annots = released_annots(30, 3)
    source = open_ma_hmr(write_released(tmp_path / "a.npz", annots))
    assert source.image_names.tolist() == [name for name in annots for _ in range(3)]
    people = [person["smpl_param"] for crowd in annots.values() for person in crowd]
    rows = source.rows(np.array([4, 0]))
    for name, key in (("pose", "pose"), ("betas", "shape"), ("transl", "trans")):
        np.testing.assert_array_equal(getattr(rows, name), [people[4][key], people[0][key]])
    np.testing.assert_array_equal(rows.intrinsics, [[[60, 0, 32], [0, 60, 24], [0, 0, 1]]] * 2)
    assert np.isnan(rows.bbox_xyxy).all()


@pytest.mark.parametrize(
    ("change", "column", "wanted"),
    [
        ({"shape": np.ones(10, np.float32)}, "betas", [1.0] * 10 + [0.0]),
        ({"shape": np.ones(11)}, "betas", [1.0] * 11),  # float64
        ({"shape": [1] * 10}, "betas", [1.0] * 10 + [0.0]),  # a list of integers
        ({"pose": np.full((24, 3), 0.5, np.float32)}, "pose", [0.5] * 72),
        ({"trans": np.array([[1, 2, 3]], ">f4")}, "transl", [1.0, 2.0, 3.0]),
        (
            {"focal": np.array([1.1, 1.2]), "princpt": [7, 8]},
            "intrinsics",
            [1.1, 0, 7, 0, 1.2, 8, 0, 0, 1],
        ),  # float64 is kept
    ],
)
def test_other_types_and_layouts_of_the_same_numbers_are_taken(change, column, wanted, tmp_path: Path) -> None:
    source = open_ma_hmr(write_released(tmp_path / "a.npz", {"a.jpg": [one(), one(**change)]}))
    assert getattr(all_rows(source), column)[1].ravel().tolist() == pytest.approx(wanted, rel=1e-12)
    assert not source.findings


@pytest.mark.parametrize(
    ("person", "words"),
    [
        (one(pose=np.zeros(71, np.float32)), "pose holds 71 numbers, expected 72"),
        (one(shape=np.zeros(12, np.float32)), "shape holds 12 numbers, expected 10 or 11"),
        (one(focal="wide"), "could not convert string"),
        ({"smpl_param": one()["smpl_param"]}, "KeyError: 'cam_param'"),
        (7, "TypeError"),
        (None, "TypeError"),
    ],
)
def test_a_person_that_is_not_as_documented_costs_itself_and_is_named(person: Any, words: str, tmp_path: Path) -> None:
    source = open_ma_hmr(write_released(tmp_path / "a.npz", {"a.jpg": [one(), person, one()], "none.jpg": []}))
    assert np.isfinite(all_rows(source).pose).all(axis=1).tolist() == [True, False, True]
    (bad,) = source.findings
    assert bad.image == "a.jpg"
    assert words in bad.reason
    assert "person 1" in bad.reason
    assert source.empty_images == ["none.jpg"]


@pytest.mark.parametrize(
    ("annots", "found"),
    [
        ({}, "lists 0 images with 0 people"),
        ({"a.jpg": [], "b.jpg": []}, "lists 2 images with 0 people"),
        ({"a.jpg": [{"kp2d": [1.0], "depth_id": 0}]}, "1 people, of whom none can be used .*KeyError: 'smpl_param'"),
        ({"a.jpg": [one(pose=np.full(72, np.nan, np.float32))]}, "not finite or behind the camera"),
    ],
)
def test_a_file_in_which_nobody_can_be_used_is_refused_with_what_it_holds(annots, found, tmp_path: Path) -> None:
    with pytest.raises(LabelFileError, match=found) as error:
        open_ma_hmr(write_released(tmp_path / "a.npz", annots))
    assert "smpl_param with pose (72,)" in str(error.value)
