"""The same person twice is found, two people are not: copies, detections of one person, and people who touch."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.data import duplicates
from dto_pipeline.data.duplicates import LabelledPeople, find_duplicates


def people(counts, seed=0, **changes):
    """Sound rows of people who stand about; `changes` in place of some columns."""
    rng, n = np.random.default_rng(seed), int(np.sum(counts))
    z = rng.uniform(2, 20, n)
    transl = np.stack([z * rng.uniform(-0.4, 0.4, n), z * rng.uniform(-0.1, 0.1, n), z], axis=1)
    corner = rng.uniform(0, 400, (n, 2))
    plain = {
        "pose": rng.normal(0, 0.25, (n, 72)),
        "betas": rng.normal(0, 1, (n, 11)) * ([1] * 10 + [0]),
        "transl": transl,
        "bbox_xyxy": np.concatenate([corner, corner + np.array([60, 180])], axis=1),
        "det_score": np.full(n, np.nan),
        "has_mask": np.zeros(n, bool),
        "usable": np.ones(n, bool),
    }
    rows = {name: np.asarray(value, changes.get(name, value).dtype) for name, value in plain.items()}
    return LabelledPeople(counts=np.asarray(counts), **{**rows, **changes})


def taken(some, rows, counts):
    """Rows of `some` people as the people of other images."""
    columns = {f.name: getattr(some, f.name)[rows] for f in dataclasses.fields(some) if f.name != "counts"}
    return LabelledPeople(counts=np.array(counts), **columns)


def twins(**moved):
    """Two rows of one image that are equal but for what is added to the second."""
    both = taken(people([1]), [0, 0], [2])
    for name, step in moved.items():
        getattr(both, name)[1] += step
    return both


def turned(angle):
    """The pose of somebody turned about the vertical, added to an upright root."""
    step = np.zeros(72)
    step[1] = angle
    return step


def test_a_copy_is_found_and_the_first_row_stays():
    assert find_duplicates(twins()).tolist() == [-1, 0]


def test_a_copy_is_one_whatever_its_box_says():
    assert find_duplicates(twins(bbox_xyxy=500.0)).tolist() == [-1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_two_detections_of_one_person_are_found(seed):
    """Scatter as networks show it: 3 degrees a joint, 3 cm sideways, 2 percent in distance, a tenth of the box."""
    rng = np.random.default_rng(seed)
    pair = twins(pose=rng.normal(0, 0.03, 72), betas=rng.normal(0, 0.2, 11) * ([1] * 10 + [0.2]))
    z = pair.transl[1, 2]
    pair.transl[1, 2] *= 1 + rng.uniform(-0.02, 0.02)
    pair.transl[1, :2] *= pair.transl[1, 2] / z
    pair.transl[1, :2] += rng.uniform(-0.03, 0.03, 2)
    pair.bbox_xyxy[1] += rng.uniform(-6, 6, 4)
    assert find_duplicates(pair).tolist() == [-1, 0]


@pytest.mark.parametrize(
    "moved",
    [
        {"transl": [0.25, 0, 0]},  # shoulder to shoulder
        {"transl": [0, 0, 0.7]},  # right behind, in step
        {"pose": turned(np.pi)},  # breast to breast: a hug
        {"pose": turned(np.pi / 2)},
        {"pose": np.random.default_rng(1).normal(0, 0.2, 72)},  # two poses in one place: labels that stand wrong
        {"betas": [0] * 10 + [0.8], "transl": [0, 0.05, 0]},  # a child before a grown-up
        {"bbox_xyxy": np.array([0, 90, 0, 90]), "transl": [0, 0.02, 0]},  # seen in two places
    ],
    ids=["beside", "behind", "hugging", "across", "other pose", "child", "other box"],
)
def test_two_people_however_near_are_two(moved):
    rng = np.random.default_rng(3)
    pair = twins(**moved)
    pair.transl[:, 2] = np.minimum(pair.transl[:, 2], 4) if "transl" not in moved else pair.transl[:, 2] % 4 + 3
    pair.betas[1, :10] += rng.normal(0, 0.05, 10)  # no copy of the numbers
    assert find_duplicates(pair).tolist() == [-1, -1]


def test_people_of_different_images_are_different_people():
    pair = dataclasses.replace(twins(), counts=np.array([1, 1]))
    assert find_duplicates(pair).tolist() == [-1, -1]


def test_the_row_with_a_mask_stays_then_the_released_one_then_the_higher_score():
    pair = twins()
    assert find_duplicates(dataclasses.replace(pair, has_mask=np.array([False, True]))).tolist() == [1, -1]
    assert find_duplicates(dataclasses.replace(pair, det_score=np.array([0.9, np.nan]))).tolist() == [1, -1]
    assert find_duplicates(dataclasses.replace(pair, det_score=np.array([0.6, 0.9]))).tolist() == [1, -1]


def test_a_row_that_cannot_be_used_is_nobodys_double():
    pair = twins(pose=np.nan)
    assert find_duplicates(dataclasses.replace(pair, usable=np.array([True, False]))).tolist() == [-1, -1]


def test_of_a_chain_the_ends_that_are_apart_both_stay():
    """A is like B and B like C, A and C stand too far apart: B goes, C is somebody else."""
    chain = taken(people([1]), [0, 0, 0], [3])
    chain.transl[:, 0] += [0, 0.07, 0.14]
    assert find_duplicates(chain).tolist() == [-1, 0, -1]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_copies_are_found_in_any_order_and_nobody_else_is(seed):
    rng = np.random.default_rng(seed)
    one = people(rng.integers(1, 5, 6), seed)
    owner = np.repeat(np.arange(6), one.counts)
    again = np.sort(np.concatenate([np.arange(owner.size), rng.integers(0, owner.size, 5)]))
    order = again[np.lexsort((rng.random(again.size), owner[again]))]
    found = find_duplicates(taken(one, order, np.bincount(owner[order], minlength=6)))
    first = np.array([np.flatnonzero(order == row)[0] for row in order])
    assert found.tolist() == np.where(first == np.arange(order.size), -1, first).tolist()


def test_blocks_of_pairs_change_nothing(monkeypatch):
    many = taken(people([15] * 20), np.repeat(np.arange(300), 2), [30] * 20)
    whole = find_duplicates(many)
    assert (whole >= 0).sum() == 300
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 1000)
    monkeypatch.setattr(duplicates, "_POSES_AT_ONCE", 7)
    assert find_duplicates(many).tolist() == whole.tolist()


def test_images_with_too_many_people_are_not_compared(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 3)
    assert find_duplicates(taken(people([1]), [0] * 6, [4, 2])).tolist() == [-1] * 5 + [4]


def test_a_shard_of_ordinary_crowds_is_looked_through_in_a_moment():
    crowds = people([5] * 4096)
    started = time.process_time()
    assert (find_duplicates(crowds) == -1).all()
    assert time.process_time() - started < 2
