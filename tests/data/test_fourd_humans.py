"""4D-Humans tars as the originals write them: tarfile, pickle and np.savez; read without running anything."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data.inert_pickle import BrokenPickle, UnsafePickle
from dto_pipeline.data.sources.fourd_humans import (
    SampleError,
    choose_masks,
    match_masks,
    parse_masks,
    parse_people,
)
from tests.pickle_streams import SENTINEL, Armed
from tests.tars import jpeg, make_index


def person(rng, **changes):
    """One entry of a .data.pyd with the keys and types of the original."""
    return {
        "keypoints_2d": rng.uniform(0, 100, (44, 3)).astype(np.float32),
        "keypoints_3d": np.zeros((44, 4), np.float32),
        "center": np.array([50.0, 60.0]),
        "scale": np.float64(0.4),
        "body_pose": rng.normal(size=72).astype(np.float32),
        "betas": rng.normal(size=10).astype(np.float32),
        "has_body_pose": np.float32(1),
        "has_betas": True,
        "personid": 3,
        "extra_info": {"source": "x"},
        **changes,
    }


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", range(6))
def test_a_sample_reads_back_equal_at_every_protocol(tmp_path, protocol):
    rng = np.random.default_rng(protocol)
    people, masks = [person(rng), person(rng)], rng.random((2, 24, 32)) < 0.5
    files = {
        "a/b/000.jpg": jpeg(),
        "a/b/000.data.pyd": pickle.dumps(people, protocol),
        "a/b/000.detection.npz": npz(masks=masks),
    }
    index = make_index(tmp_path, t=files)
    found = parse_people(index.read_bytes("t.tar!a/b/000.data.pyd"), "t.tar!a/b/000.data.pyd")
    for row, wanted in enumerate(people):
        np.testing.assert_array_equal(found.keypoints[row], wanted["keypoints_2d"])
    np.testing.assert_allclose(found.bbox_xyxy, [[10, 20, 90, 100]] * 2, rtol=1e-6)
    np.testing.assert_array_equal(
        parse_masks(index.read_bytes("t.tar!a/b/000.detection.npz"), "t.tar!a/b/000.detection.npz"), masks
    )


@pytest.mark.parametrize("protocol", range(6))
def test_hostile_people_are_refused_by_name_and_nothing_runs(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    index = make_index(tmp_path, t={"000.data.pyd": pickle.dumps([{"betas": Armed()}], protocol), "1.jpg": jpeg()})
    with pytest.raises(UnsafePickle, match=r"t\.tar!000\.data\.pyd.*(posix|nt)\.?.*system"):
        parse_people(index.read_bytes("t.tar!000.data.pyd"), "t.tar!000.data.pyd")
    assert not (tmp_path / SENTINEL).exists()


def test_what_is_wrong_with_one_person_costs_that_field_only():
    rng = np.random.default_rng(0)
    people = [
        person(rng, keypoints_2d=np.zeros((25, 3))),
        person(rng, scale="wide"),
        {"scale": np.array([0.4])},
    ]
    found = parse_people(pickle.dumps(people), "x.data.pyd")
    assert np.isnan(found.keypoints).all(axis=(1, 2)).tolist() == [True, False, True]
    assert np.isnan(found.bbox_xyxy).all(axis=1).tolist() == [False, True, True]


def test_other_pickles_are_refused_with_what_they_hold():
    for value in ({"a": 1}, [1, 2], "text"):
        with pytest.raises(SampleError, match=r"x\.data\.pyd holds .*; expected a list with one dict per person"):
            parse_people(pickle.dumps(value), "x.data.pyd")
    with pytest.raises(BrokenPickle, match=r"x\.data\.pyd"):
        parse_people(pickle.dumps([person(np.random.default_rng(0))])[:-20], "x.data.pyd")


def test_masks_that_are_no_masks_are_refused_by_name():
    for data, message in (
        (npz(other=np.zeros(3)), "holds the arrays"),
        (npz(masks=np.zeros((4, 5), bool)), r"\(4, 5\); expected booleans \(K, H, W\)"),
        (npz(masks=np.full((1, 4, 5), 7, np.uint8)), "expected booleans"),
        (npz(masks=np.zeros((1, 4, 5), np.float32)), "expected booleans"),
    ):
        with pytest.raises(SampleError, match=rf"t\.tar!0\.npz.*{message}"):
            parse_masks(data, "t.tar!0.npz")
    with pytest.raises(SampleError, match=r"t\.tar!0\.npz: its type is object; expected numbers"):
        parse_masks(npz(masks=np.array([Armed()], dtype=object)), "t.tar!0.npz")
    with pytest.raises(SampleError, match=r"t\.tar!0\.npz: not a whole npz"):
        parse_masks(npz(masks=np.zeros((1, 4, 5), bool))[:-30], "t.tar!0.npz")


def test_no_masks_are_zero_masks():
    assert parse_masks(npz(masks=np.zeros((0, 4, 5), bool)), "x").shape == (0, 4, 5)


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_masks_find_their_people_in_any_order(count, seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 20, 20 * count), bool)
    for k in range(count):
        masks[k, 2:18, 20 * k + 2 : 20 * k + 18] = True
    order = rng.permutation(count)
    points = rng.uniform(2, 18, (count, 44, 2)) + np.stack([20.0 * order, np.zeros(count)], axis=1)[:, None]
    confidence = rng.random((count, 44, 1)) < 0.8
    points[~confidence[..., 0]] = -50
    assert match_masks(masks, np.concatenate([points, confidence], axis=-1)).tolist() == order.tolist()


def test_a_mask_that_covers_less_than_half_of_a_person_is_nobodys():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :, :5] = True
    inside, outside = [2.0, 5.0, 1.0], [7.0, 5.0, 1.0]
    assert match_masks(masks, np.array([[inside, outside, outside], [outside] * 3])).tolist() == [-1, -1]
    assert match_masks(masks, np.array([[inside, inside, [1e9, np.nan, 1.0]], [outside] * 3])).tolist() == [0, -1]
    assert match_masks(masks[:0], np.zeros((2, 44, 3))).tolist() == [-1, -1]


@pytest.mark.parametrize("protocol", range(6))
def test_what_the_originals_keep_in_object_arrays_is_read_and_a_mask_is_named_by_its_number(protocol):
    """`fitting_loss` is a 0-d object array around a dict; `scale` may have two sides, of which the longer counts."""
    rng = np.random.default_rng(0)
    info = {"fitting_loss": np.array({"total": np.float32(1)}, dtype=object), "detection_npz_idx": np.int64(2)}
    people = [
        person(rng, extra_info=info, scale=np.array([0.2, 0.4])),
        person(rng, extra_info=np.array({"detection_npz_idx": np.array(1)}, dtype=object)),
        person(rng, extra_info={"detection_npz_idx": -1}),
        person(rng, extra_info={"detection_npz_idx": True}),
        person(rng, extra_info={"detection_npz_idx": 1.5}),
        person(rng, extra_info=None),
    ]
    found = parse_people(pickle.dumps(people, protocol), "x.data.pyd")
    assert found.mask.tolist() == [2, 1, -1, -1, -1, -1]
    np.testing.assert_allclose(found.bbox_xyxy[0], [10, 20, 90, 100], rtol=1e-6)


class Crowd:
    """Three people, two of them nearly behind each other: the hidden one's joints lie on the one in front.

    Front (0) covers columns 10 to 30, hidden (1) shows only its columns 30 to 34, a third (2) stands at 60 to 80.
    """

    masks = np.zeros((4, 40, 90), bool)
    masks[3, :, 10:30] = masks[0, :, 30:34] = masks[1, :, 60:80] = True  # of 0, 1, 2; mask 2 is of a passer-by
    masks[2, :, 85:] = True
    number = (3, 0, 1)
    centre = np.array([[20.0, 20], [24, 20], [70, 20]])
    side = np.array([24.0, 24, 24])

    def __init__(self, numbers=number):
        columns, rng = ((12, 28), (14, 29), (62, 78)), np.random.default_rng(0)
        points = [np.stack([rng.uniform(*c, 44), rng.uniform(5, 35, 44), np.ones(44)], 1) for c in columns]
        self.keypoints = np.stack(points).astype(np.float32)
        self.boxes = np.concatenate([self.centre - self.side[:, None] / 2, self.centre + self.side[:, None] / 2], 1)
        info = [{} if number is None else {"detection_npz_idx": number} for number in numbers]
        shown = (self.keypoints, self.centre, self.side / 200, info)
        keys = ("keypoints_2d", "center", "scale", "extra_info")
        people = [dict(zip(keys, values, strict=True)) for values in zip(*shown, strict=True)]
        self.people = parse_people(pickle.dumps(people), "x")

    def choose(self, rows=(0, 1, 2), keypoints=True, boxes=True):
        rows = list(rows)
        own = self.keypoints[rows] if keypoints else None
        around = self.boxes[rows] if boxes else np.full((len(rows), 4), np.nan)
        found, fault = choose_masks(self.masks, own, around.astype(np.float32), self.people)
        return found.tolist(), fault


def test_somebody_hidden_gets_his_own_mask_and_not_that_of_the_one_in_front():
    crowd = Crowd()
    assert match_masks(crowd.masks, crowd.keypoints).tolist() != list(crowd.number)  # what the joints would say
    assert crowd.choose() == ([3, 0, 1], "")
    assert crowd.choose(rows=(2, 1, 0)) == ([1, 0, 3], "")
    assert crowd.choose(rows=(1,)) == ([0], "")
    assert crowd.choose(boxes=False) == ([3, 0, 1], "")


def test_without_keypoints_the_nearest_box_says_who_it_is():
    assert Crowd().choose(keypoints=False) == ([3, 0, 1], "")
    assert Crowd().choose(rows=(1, 0), keypoints=False) == ([0, 3], "")


def test_a_row_that_is_nobody_of_the_sample_gets_no_mask():
    crowd = Crowd()
    crowd.keypoints[0] += 5
    crowd.boxes[0] += 300
    assert crowd.choose() == ([-1, 0, 1], "")
    assert crowd.choose(keypoints=False, boxes=False) == ([-1, -1, -1], "")


def test_rows_that_repeat_a_person_take_the_same_mask():
    assert Crowd().choose(rows=(1, 1, 0)) == ([0, 0, 3], "")
    assert Crowd().choose(rows=(1, 1, 0), keypoints=False) == ([0, 0, 3], "")


def test_people_who_name_no_mask_find_one_by_their_keypoints_that_nobody_names():
    assert Crowd(numbers=(3, 0, None)).choose() == ([3, 0, 1], "")
    nameless, by_joints = Crowd(numbers=(None, None, None)), match_masks(Crowd.masks, Crowd().keypoints).tolist()
    assert nameless.choose()[0] == by_joints
    assert nameless.choose(keypoints=False)[0] == by_joints  # those of the people in the sample


def test_a_number_beyond_the_masks_is_reported_and_costs_that_person_only():
    assert Crowd(numbers=(3, 7, 1)).choose() == ([3, -1, 1], "a person names mask 7 of 4")


def test_rounded_keypoints_are_the_same_ones_and_two_known_points_are_too_few():
    crowd = Crowd()
    crowd.keypoints = np.round(crowd.keypoints)
    assert crowd.choose(boxes=False) == ([3, 0, 1], "")
    crowd.keypoints[:, 2:, 2] = 0
    assert crowd.choose(boxes=False) == ([-1, -1, -1], "")
