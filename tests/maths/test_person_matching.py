"""Agreement of bodies in the image, assignment, duplicates, and people under another camera."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dto_pipeline.maths.camera import carry_to_camera, project
from dto_pipeline.maths.person_matching import (
    MIN_SHARE,
    BodyViews,
    assign_people,
    compare_people,
    pairs_within,
    suppress_duplicates,
    view_bodies,
)

CAMERA = torch.tensor([[300.0, 0, 80], [0, 300, 60], [0, 0, 1]], dtype=torch.float64)
UPRIGHT = torch.tensor([torch.pi] + [0.0] * 71)


def stand(body, places):
    """Joints (n, 45, 3) of people standing at places (n, 3) [m]."""
    places = torch.tensor(places, dtype=torch.float32)
    return body.joints(UPRIGHT.expand(len(places), 72), torch.zeros(len(places), 11), places)


def view(joints):
    return view_bodies(joints.numpy(), np.broadcast_to(CAMERA, (len(joints), 3, 3)))


def see(points, visible=True):
    """Keypoints (n, 45, 3) at `points`, visible everywhere, nowhere, or as (45,) says."""
    confidence = np.broadcast_to(np.asarray(visible), points.shape[:2])
    return np.concatenate([points, confidence[..., None]], axis=-1)


def compare(views, references, points=None, visible=True):
    """Share and distance of the first query, whose keypoints are `points` or its joints, and the first reference."""
    keypoints = see(views.joints if points is None else points, visible)
    found = compare_people(keypoints, views, references, (np.zeros(1, int), np.zeros(1, int)))
    return [value.item() for value in found]


def assign(share, first, second, distance=None):
    share = np.ravel(share)
    distance = np.zeros(share.size) if distance is None else np.array(distance)
    image, other = (np.repeat(np.arange(len(counts)), counts) for counts in (first, second))
    return assign_people(share, distance, pairs_within(image, other), image).tolist()


def test_the_head_is_as_large_as_the_bodys_head_and_scales_with_distance(body):
    joints = stand(body, [(0, 0, 3.0), (0, 0, 6.0)])
    rest = body.vertices(torch.zeros(1, 72), torch.zeros(1, 11), torch.zeros(1, 3))[0]
    neck = body.joints(torch.zeros(1, 72), torch.zeros(1, 11), torch.zeros(1, 3))[0, 12]
    near, far = view(joints).head
    assert near == pytest.approx(300 / 3.0 * (rest[:, 1].max() - neck[1]).item(), rel=0.05)
    assert near / far == pytest.approx(2, rel=0.02)


def test_a_head_seen_from_above_keeps_its_size(body):
    lying = UPRIGHT.clone()
    lying[0] = torch.pi / 2  # the body's axis points along the camera's
    joints = body.joints(lying[None], torch.zeros(1, 11), torch.tensor([[0.0, 0, 30]]))
    upright = stand(body, [(0, 0, 30.0)])
    assert view(joints).head.item() == pytest.approx(view(upright).head.item(), 0.1)


def test_joints_behind_the_camera_have_no_image_and_no_part_in_the_box(body):
    joints = stand(body, [(0, 0, 3.0)])
    joints[0, :24, 2] = -1
    views = view(joints)
    assert np.isnan(views.joints[0, :24]).all()
    assert np.isfinite(views.box).all()
    joints[0, :, 2] = -1
    assert np.isnan(view(joints).box).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_bodies_that_are_not_finite_agree_with_nobody_and_give_no_warning(body, bad):
    joints = stand(body, [(0, 0, 3.0), (0, 0, 3.0)])
    joints[0] = bad
    views = view(joints)
    for visible in (True, False):
        keypoints = see(np.nan_to_num(views.joints), visible)
        share, _ = compare_people(keypoints, views, views, (np.array([0, 1]), np.array([1, 0])))
        assert share.max() < MIN_SHARE


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6))
def test_everyone_is_paired_with_everyone_of_the_same_image_once(counts):
    first, second = (np.repeat(np.arange(len(counts)), [c[side] for c in counts]) for side in (0, 1))
    expected, start = [], (0, 0)
    for a, b in counts:
        expected += [(start[0] + i, start[1] + j) for i in range(a) for j in range(b)]
        start = (start[0] + a, start[1] + b)
    assert list(zip(*(side.tolist() for side in pairs_within(first, second)), strict=True)) == expected


def test_a_person_is_wholly_the_same_as_itself_with_and_without_keypoints(body):
    views = view(stand(body, [(0, 0, 3.0)]))
    for visible in (True, False):
        assert compare(views, views, visible=visible) == pytest.approx([1, 0])


@pytest.mark.parametrize(("shift", "expected"), [(0.59, 1.0), (0.61, 0.0)])
def test_keypoints_agree_within_six_tenths_of_the_head(body, shift, expected):
    views = view(stand(body, [(0, 0, 3.0)]))
    moved = views.joints + np.array([shift * views.head.item(), 0.0])
    assert compare(views, views, moved)[0] == expected


def test_only_visible_keypoints_count(body):
    views = view(stand(body, [(0, 0, 3.0)]))
    points = views.joints.copy()
    points[:, 10:] += 1000
    assert compare(views, views, points, np.arange(45) < 12)[0] == pytest.approx(10 / 12)


def test_boxes_that_share_a_third_overlap_by_a_third():
    one, other = (
        BodyViews(np.zeros((1, 45, 2)), np.ones(1), np.array([box])) for box in ([0.0, 0, 4, 2], [2.0, 0, 6, 2])
    )
    assert compare(one, other, visible=False)[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("share", "distance", "first", "second", "partner"),
    [
        ([[0.9, 0.8], [0.8, 0.1]], None, [2], [2], [1, 0]),  # greedy takes (0, 0) first and leaves the second alone
        ([[0.5, 0.2], [0.9, 0.5]], None, [2], [2], [-1, 0]),  # not the same person
        ([1.0, 1.0], [0.3, 0.2], [2], [1], [-1, 0]),  # of equal shares the nearer
        ([0.6, 0.9, 0.8], None, [1, 0, 2, 1], [0, 3, 1, 1], [-1, -1, 3, 4]),  # images apart
    ],
)
def test_the_best_assignment_of_those_who_are_the_same_is_found(share, distance, first, second, partner):
    assert assign(share, first, second, distance) == partner


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_assignment_is_one_to_one_and_at_least_as_good_as_greedy(queries, references, seed):
    share = torch.rand(queries, references, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    partner = assign(share, [queries], [references])
    taken = [reference for reference in partner if reference >= 0]
    assert len(set(taken)) == len(taken)
    best = sum(share[q, r].item() for q, r in enumerate(partner) if r >= 0)
    greedy, free, left = 0.0, set(range(queries)), set(range(references))
    for q, r in sorted(((q, r) for q in free for r in left), key=lambda pair: -share[pair].item()):
        if q in free and r in left and share[q, r] > MIN_SHARE:
            greedy += share[q, r].item()
            free.remove(q)
            left.remove(r)
    assert best >= greedy - 1e-9


def test_a_duplicate_of_a_duplicate_is_kept():
    """0 removes 1; 2 is only like 1, who is gone."""
    original = suppress_duplicates(np.array([0, 1]), np.array([1, 2]), np.array([0, 1, 2]))
    assert original.tolist() == [-1, 0, -1]


def test_the_best_kept_person_is_the_one_that_a_duplicate_names():
    """By rank 2, 0, 1: person 1 is like both others, who are not alike."""
    original = suppress_duplicates(np.array([0, 2]), np.array([1, 1]), np.array([1, 2, 0]))
    assert original.tolist() == [-1, 2, -1]


def test_the_pelvis_keeps_its_place_in_the_image_under_another_camera(body):
    joints = stand(body, [(0.4, -0.2, 3.0)]).double()
    transl = torch.tensor([[0.4, -0.2, 3.0]], dtype=torch.float64)
    other = torch.tensor([[[450.0, 0, 70], [0, 450, 66], [0, 0, 1]]], dtype=torch.float64)
    moved = carry_to_camera(transl, joints[:, 0], CAMERA[None], other)
    pelvis = joints[:, 0] + moved - transl
    torch.testing.assert_close(project(pelvis, other), project(joints[:, 0], CAMERA[None]))
    assert pelvis[0, 2].item() == pytest.approx(1.5 * joints[0, 0, 2].item())
    torch.testing.assert_close(carry_to_camera(transl, joints[:, 0], CAMERA[None], CAMERA[None]), transl)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(0, 4), st.booleans(), st.integers(0, 10_000))
def test_a_query_equal_to_a_reference_is_never_new_however_dense_the_crowd(body, people, strangers, seen, seed):
    spots = torch.rand(people + strangers, 3, generator=torch.Generator().manual_seed(seed)) * 0.6
    views = view(stand(body, (spots + torch.tensor([-0.3, -0.3, 3.0])).tolist()))
    keypoints = see(views.joints, seen)  # the strangers stand between the released people
    image = np.zeros(people + strangers, int)
    pairs = pairs_within(image, image[:people])
    partner = assign_people(*compare_people(keypoints, views, views[np.arange(people)], pairs), pairs, image)
    assert (partner[:people] >= 0).all()
