"""People of two files: who is who, how far apart they stand, and who is missing, whatever the order."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data.people import People, read_people
from dto_pipeline.evaluate.people_diff import PeopleDiff, diff_people
from dto_pipeline.models.body import BodyModel
from tests.evaluate.people import images_of
from tests.released_files import released_annots, write_released


def people_of(annots: dict[str, Any], path: Path) -> People:
    return read_people(write_released(path, annots))


def compare(before: People, after: People, **options: Any) -> PeopleDiff:
    return diff_people(before, after, **options)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return released_annots(20, 3), released_annots(20, 3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_order_of_images_and_people_changes_nothing(seed: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("order")
    annots, rng = released_annots(10, 4), np.random.default_rng(seed)
    keys = rng.permutation(list(annots)).tolist()
    mixed = {key: [annots[key][k] for k in rng.permutation(4)] for key in keys}
    diff = compare(people_of(annots, folder / "a.npz"), people_of(mixed, folder / "b.npz"))
    assert (diff.images, diff.people, diff.different, diff.equal) == (10, 40, 0, True)


def test_moved_people_are_measured_person_by_person(pair, body: BodyModel, tmp_path: Path) -> None:
    before, after = pair
    for crowd in after.values():
        crowd.reverse()
        crowd[0]["smpl_param"]["trans"] *= np.float32(1.5)  # along its ray, and taller: what DTO does
        crowd[0]["smpl_param"]["shape"][0] += np.float32(1)
    diff = compare(people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "b.npz"), body=body)
    assert (diff.people, diff.different, diff.by_place, diff.equal) == (60, 20, 0, False)
    z = np.array([crowd[2]["smpl_param"]["trans"][2] for crowd in before.values()])
    dz = diff.values["dz"]
    assert np.sort(dz[dz != 0]) == pytest.approx(np.sort(z / 2), rel=1e-5)
    assert diff.statistics("dscale")["largest"] == pytest.approx(0.5, rel=1e-5)
    taller = diff.values["dheight"]
    assert ((taller != 0) == (dz != 0)).all()
    assert diff.worst[0][0] == pytest.approx((z / 2).max(), rel=1e-5)
    assert [size for size, _ in diff.worst] == sorted((size for size, _ in diff.worst), reverse=True)
    assert len(diff.worst) == 10
    assert "different" in diff.as_table()


def test_people_and_images_of_one_side_alone_are_counted_and_named(pair, tmp_path: Path) -> None:
    before, after = pair
    del after["000003.jpg"]
    lost = after["000004.jpg"].pop(1)
    after["000005.jpg"].append(lost)
    after["new.jpg"] = [lost]
    diff = compare(people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "b.npz"))
    assert diff.images_only == {"before": 1, "after": 1}
    assert diff.accepted == {"both": 19, "before": 1, "after": 1}
    assert diff.people_only == {"before": 1, "after": 1}
    assert diff.people_missing == ["000004.jpg, person 1: before only", "000005.jpg, person 3: after only"]
    assert not diff.equal


def test_sides_swapped_give_the_same_answer_the_other_way_round(pair, tmp_path: Path) -> None:
    before, after = pair
    after["000001.jpg"][0]["smpl_param"]["trans"][2] += np.float32(2)
    after["000002.jpg"].pop()
    one, two = people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "b.npz")
    straight, swapped = compare(one, two), compare(two, one)
    assert straight.statistics("dz")["mean"] == -swapped.statistics("dz")["mean"] > 0
    assert straight.people_only == {"before": 1, "after": 0}
    assert swapped.people_only == {"before": 0, "after": 1}


def test_twins_of_one_pose_are_told_apart_by_shape_and_then_by_place(tmp_path: Path) -> None:
    annots = released_annots(1, 4)
    crowd = annots["000000.jpg"]
    for person in crowd[1:]:
        person["smpl_param"]["pose"] = crowd[0]["smpl_param"]["pose"]
    crowd[1]["smpl_param"]["shape"] = crowd[0]["smpl_param"]["shape"]
    mixed = {"000000.jpg": [crowd[k] for k in (3, 1, 0, 2)]}
    assert compare(people_of(annots, tmp_path / "a.npz"), people_of(mixed, tmp_path / "b.npz")).equal


def test_people_of_different_poses_are_matched_by_their_place_in_the_picture(pair, tmp_path: Path) -> None:
    before, after = pair
    for crowd in after.values():
        for person in crowd:
            person["smpl_param"]["pose"] += np.float32(0.02)
            person["smpl_param"]["trans"] *= np.float32(1.1)  # along the ray: the same place in the picture
        crowd.reverse()
    diff = compare(people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "b.npz"))
    assert (diff.people, diff.by_place, sum(diff.people_only.values())) == (60, 60, 0)
    assert diff.statistics("dscale")["mean"] == pytest.approx(0.1, rel=1e-4)
    for crowd in after.values():
        for person in crowd:
            person["smpl_param"]["trans"][0] += np.float32(9)  # elsewhere: a stranger
    diff = compare(people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "c.npz"))
    assert (diff.people, diff.people_only) == (0, {"before": 60, "after": 60})


def test_people_without_usable_numbers_are_left_out_and_counted(pair, tmp_path: Path) -> None:
    before, after = pair
    before["000000.jpg"][0]["smpl_param"]["pose"][3] = np.nan
    after["000000.jpg"][0]["smpl_param"]["pose"][3] = np.nan
    after["000001.jpg"][2]["smpl_param"]["trans"][2] = -1
    diff = compare(people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "b.npz"))
    assert diff.unusable == {"before": 1, "after": 2}
    assert diff.people_only == {"before": 1, "after": 0}
    assert diff.people_missing == ["000001.jpg, person 2: before only"]


def test_another_focal_length_is_a_difference(pair, tmp_path: Path) -> None:
    before, after = pair
    after["000000.jpg"][0]["cam_param"]["focal"][:] = 61
    diff = compare(people_of(before, tmp_path / "a.npz"), people_of(after, tmp_path / "b.npz"))
    assert (diff.other_cameras, diff.equal) == (3, False)


def test_acceptance_of_a_run_is_held_against_a_file_that_lists_accepted_images(pair, tmp_path: Path) -> None:
    people = people_of(pair[0], tmp_path / "a.npz")
    judged = dataclasses.replace(people, accepted=np.arange(20) >= 4)
    listed = images_of(people, 5, 20)
    diff = compare(judged, listed)
    assert diff.accepted == {"both": 15, "before": 1, "after": 0}
    assert diff.images_only == {"before": 5, "after": 0}
    assert diff.images_apart == ["000004.jpg: before only"]
